"""One export of a whole train step serves CPU, GPU and TPU.

`jax.export` lowers for platforms that this machine does not have. That StableGrad
lowers to the same plain StableHLO for each is what can be shown of GPUs and TPUs
without one.
"""

import functools
import importlib.util
import re
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export

import stablegrad_optax as sg
from stablegrad_optax import _scale

PLATFORMS = ("cpu", "cuda", "tpu")

on_all_platforms = pytest.mark.compatible(
    "accelerator", "`jax.export` for CUDA and TPU"
)

# --- Networks with a small and a large layer ------------------------------------------


class LinenNet(nn.Module):
    width: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        dense = functools.partial(nn.Dense, param_dtype=self.param_dtype)
        x = nn.relu(nn.Conv(4, (3, 3), param_dtype=self.param_dtype)(x))
        x = nn.relu(dense(self.width)(x.reshape(len(x), -1)))
        return dense(2)(x)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(x.shape[-1])(x)), None


class LinenStack(nn.Module):
    """Three blocks in one leaf beside the layers of LinenNet."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        blocks = nn.scan(
            LinenBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(2)(x)


class NnxNet(nnx.Module):
    def __init__(self, width, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(256, width, rngs=rngs)
        self.head = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.head(nnx.relu(self.dense(x.reshape(len(x), -1))))


def stacked_blocks(path, leaf):
    return 0 if any(getattr(key, "key", None) == "blocks" for key in path) else None


class Model(NamedTuple):
    params: Any
    predict: Any  # (params, images) -> logits
    stack_axis: Any = None


def filled(shapes):
    """Parameters without compiling the initialisers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(0.1 * rng.normal(size=s.shape), s.dtype), shapes
    )


def linen(network, **options):
    shapes = jax.eval_shape(network.init, jax.random.key(0), images())
    return Model(filled(shapes), network.apply, **options)


def linen_convnet():
    return linen(LinenNet(width=96))


def linen_convnet_bfloat16():
    return linen(LinenNet(width=96, param_dtype=jnp.bfloat16))


def linen_stacked():
    return linen(LinenStack(width=96), stack_axis=stacked_blocks)


def nnx_convnet():
    abstract = nnx.eval_shape(lambda: NnxNet(96, nnx.Rngs(0)))
    graph, shapes = nnx.split(abstract, nnx.Param)
    return Model(filled(shapes), lambda params, x: nnx.merge(graph, params)(x))


def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)


LABELS = jnp.array([0, 1, 1, 0])


# --- The step, as a function of arrays ------------------------------------------------


def train_step(model):
    """The jitted step of flat lists of arrays, and the first arguments.

    Flat, since only those who write a pytree class can say how it is serialised.
    """

    def loss(logits, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    tx = optax.chain(sg.stablegrad(stack_axis=model.stack_axis), optax.adam(1e-2))
    gradient = sg.value_and_grad_with_reference(
        lambda params, images, labels: model.predict(params, images), loss
    )
    leaves, treedef = jax.tree.flatten((model.params, tx.init(model.params)))

    @jax.jit
    def step(leaves, images, labels):
        params, state = treedef.unflatten(leaves)
        value, grads, reference = gradient(params, images, labels)
        updates, state = tx.update(grads, state, params, reference=reference)
        params = optax.apply_updates(params, updates)
        return jax.tree.leaves((params, state)), value

    return step, (leaves, images(), LABELS)


@pytest.fixture(
    scope="module",
    params=[linen_convnet_bfloat16, linen_stacked, nnx_convnet],
    ids=lambda model: model.__name__,
)
def exported(request):
    """The step, its first arguments, and the program for all platforms."""
    model = request.param()
    sizes = {leaf.size for leaf in jax.tree.leaves(model.params) if leaf.ndim > 1}
    assert min(sizes) < _scale._SMALL_LAYER < max(sizes)
    step, arguments = train_step(model)
    return step, arguments, export.export(step, platforms=PLATFORMS)(*arguments)


def custom_calls(program):
    return set(re.findall(r"custom_call\s*@(\w+)", program.mlir_module()))


@on_all_platforms
def test_lowers_to_plain_stablehlo_for_all_platforms(exported):
    """No kernel that only one platform has, and no call of the host."""
    _, _, program = exported
    assert program.platforms == PLATFORMS
    assert custom_calls(program) == set()
    # TPUs emulate float64, and consumer GPUs have little of it.
    assert "f64" not in program.mlir_module()
    assert not program.ordered_effects
    assert not program.unordered_effects


@on_all_platforms
def test_survives_serialisation(exported):
    pytest.importorskip("flatbuffers", reason="jax.export serialises with flatbuffers")
    _, _, program = exported
    read = export.deserialize(program.serialize())
    assert read.platforms == PLATFORMS
    assert read.mlir_module() == program.mlir_module()


@on_all_platforms
def test_the_exported_step_is_the_jitted_step(exported):
    """On this machine's CPU, from the file that another machine would read."""
    step, (leaves, *batch), program = exported
    if importlib.util.find_spec("flatbuffers"):
        program = export.deserialize(program.serialize())
    restored = jax.jit(program.call)
    got = expected = leaves, None
    for _ in range(2):  # the second starts from moments that are not zero
        got, expected = restored(got[0], *batch), step(expected[0], *batch)
        chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
        chex.assert_tree_all_finite(got)
        # Adam divides an element's gradient by its own size, rounding error included.
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_calls_of_a_platforms_library_are_seen():
    program = export.export(jax.jit(jnp.linalg.cholesky), platforms=PLATFORMS)
    assert len(custom_calls(program(jnp.eye(3)))) > 1
