"""One export of a whole train step serves CPU, GPU and TPU.

`jax.export` lowers for platforms that this machine does not have. That the step lowers
to the same plain StableHLO for each is what can be shown of GPUs and TPUs without one.
"""

import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from definitions import random_layer
from jax import export, lax

import stablegrad_optax as sg

PLATFORMS = ("cpu", "cuda", "tpu")
TERMS = ("classes", "weights")


def initial_params():
    """A dense layer, three in one leaf of another dtype, and a last one."""
    members = [random_layer(16, 16, 0.2, "bfloat16", seed) for seed in range(3)]
    return {
        "first": random_layer(12, 16, 0.2),
        "blocks": jax.tree.map(lambda *x: jnp.stack(x), *members),
        "head": random_layer(16, 2, 0.2),
    }


def predict(params, x, labels):
    def apply(x, layer):
        x = x.astype(layer["kernel"].dtype)
        return jnp.tanh(x @ layer["kernel"] + layer["bias"]), None

    x, _ = apply(x, params["first"])
    x, _ = lax.scan(apply, x.astype(jnp.bfloat16), params["blocks"])
    return apply(x, params["head"])[0]


def cross_entropy(logits, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def losses(params, x, labels):
    logits = predict(params, x, labels)
    squares = [jnp.mean(leaf.astype(float) ** 2) for leaf in jax.tree.leaves(params)]
    return {"classes": cross_entropy(logits, x, labels), "weights": sum(squares)}


@pytest.fixture(scope="module")
def exported():
    """The jitted step, its first arguments, and the program for all platforms.

    Of flat lists, since only those who write a pytree class can say how it is
    serialised.
    """
    params = initial_params()

    def stack_axis(path, leaf):
        return 0 if path[0].key == "blocks" else None

    first = sg.balance_terms(TERMS), sg.stablegrad(stack_axis=stack_axis)
    tx = optax.chain(*first, optax.adam(1e-2))
    leaves, treedef = jax.tree.flatten((params, tx.init(params)))

    @jax.jit
    def step(leaves, x, labels):
        params, state = treedef.unflatten(leaves)
        values, grads = sg.value_and_grad_of_terms(losses)(params, x, labels)
        reference_of = sg.value_and_grad_with_reference(predict, cross_entropy)
        *_, reference = reference_of(params, x, labels)
        updates, state = tx.update(
            grads, state, params, values=values, reference=reference
        )
        return jax.tree.leaves((optax.apply_updates(params, updates), state))

    arguments = leaves, random_layer(4, 12)["kernel"], jnp.array([0, 1, 1, 0])
    return step, arguments, export.export(step, platforms=PLATFORMS)(*arguments)


def custom_calls(program):
    return set(re.findall(r"custom_call\s*@(\w+)", program.mlir_module()))


def test_lowers_to_plain_stablehlo_for_all_platforms(exported):
    """No kernel that only one platform has, and no call of the host."""
    _, _, program = exported
    assert program.platforms == PLATFORMS
    assert custom_calls(program) == set()
    # TPUs emulate float64, and consumer GPUs have little of it.
    assert "f64" not in program.mlir_module()
    assert not program.ordered_effects
    assert not program.unordered_effects


def test_the_exported_step_is_the_jitted_step(exported):
    """On this machine's CPU, from the file that another machine would read."""
    step, (leaves, *batch), program = exported
    read = export.deserialize(program.serialize())
    assert read.mlir_module() == program.mlir_module()
    restored = jax.jit(read.call)
    got = expected = leaves
    for _ in range(2):  # the second starts from moments that are not zero
        got, expected = restored(got, *batch), step(expected, *batch)
        chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
        chex.assert_tree_all_finite(got)
        # Adam divides an element's gradient by its own size, rounding error included.
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_calls_of_a_platforms_library_are_seen():
    program = export.export(jax.jit(jnp.linalg.cholesky), platforms=PLATFORMS)
    assert len(custom_calls(program(jnp.eye(3)))) > 1
