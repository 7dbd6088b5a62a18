"""layer_scales and tabulate: what a user sees of the layers.

Which layers they are is tested in test_layers.py, and their scales in test_scale.py.
"""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from definitions import random_layer, scale

import stablegrad_optax as sg


def only_blocks(path, leaf):
    return 0 if path[0].key == "blocks" else None


GRADS = {
    "blocks": {"kernel": jnp.ones((3, 8, 8)).at[:, 0].set([[2.0], [3.0], [9.0]])},
    "first": random_layer(2, 8, 1e-7, "bfloat16"),
    "norm": {"scale": jnp.ones(8)},
}


def test_layer_scales_under_jit():
    scales = jax.jit(lambda g: sg.layer_scales(g, stack_axis=only_blocks))(GRADS)
    expected = {
        "blocks": np.array([scale(x) for x in GRADS["blocks"]["kernel"]], np.float32),
        "first": np.float32(scale(GRADS["first"]["kernel"])),
    }
    chex.assert_trees_all_equal_shapes_and_dtypes(scales, expected)
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


def test_the_table():
    tree = GRADS | {"temperature": 1.0, "step": 3, "of_rank": jnp.arange(3)}
    shapes = jax.eval_shape(lambda: tree)
    for params in (tree, shapes):
        table = sg.tabulate(params, stack_axis=only_blocks)
        assert table.splitlines() == [
            "layer   leaf         shape   dtype     role",
            "blocks  kernel       3x8x8   float32   weight, 3 slices on axis 0",
            "first   bias         8       bfloat16  scaled",
            "        kernel       2x8     bfloat16  weight",
            "norm    scale        8       float32   unchanged",
            ".       temperature  scalar  float32   unchanged",
            "6 layers, 4 with weights; 225 elements; 2 other leaves unchanged",
        ]


def test_an_empty_tree():
    assert sg.tabulate({}).endswith("0 layers, 0 with weights; 0 elements")
    assert sg.layer_scales({}) == {}


def test_a_module_with_an_activation_that_is_no_array():
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    assert callable(model.activation)
    names = ["layers/0", "layers/1"]
    assert list(sg.layer_scales(model)) == names
    table = sg.tabulate(model)
    assert "activation" not in table
    assert [line.split()[0] for line in table.splitlines()[1:4:2]] == names
