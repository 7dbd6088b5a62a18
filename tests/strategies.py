"""Strategies for gradient trees: what a user may hand to StableGrad, and odder things.

Shapes come from a short list, so that operations compiled for one example serve the
next. Values come from named distributions over the whole range of the dtype.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from hypothesis import strategies as st

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64)

SHAPES = ((2, 3), (3,), (), (1,), (1, 1), (0,), (0, 3), (3, 2, 3))


def dtype_of(leaf):
    """The dtype of an array; that of the array to be for a Python scalar."""
    return getattr(leaf, "dtype", None) or jnp.result_type(leaf)


def is_inexact(leaf):
    return jnp.issubdtype(dtype_of(leaf), np.inexact)


# --- Values ---------------------------------------------------------------------------


def _log_uniform(rng, shape, low, high):
    magnitudes = 10.0 ** rng.uniform(np.log10(low), np.log10(high), shape)
    return rng.choice([-1.0, 1.0], shape) * magnitudes


def _sparse(rng, shape, info):
    values = np.zeros(shape)
    if values.size:
        values.flat[rng.integers(values.size)] = rng.normal()
    return values


def _equal(rng, shape, info):
    return np.full(shape, _log_uniform(rng, (), float(info.tiny), float(info.max)))


def _beside_a_mean(rng, shape, info):
    return 10.0 ** rng.uniform(0, 4) + rng.normal(size=shape)


# Each takes a generator, a shape and the finfo of a real dtype, and returns float64.
DISTRIBUTIONS: dict[str, Callable[..., np.ndarray]] = {
    "ordinary": lambda rng, shape, info: rng.normal(size=shape),
    "zero": lambda rng, shape, info: np.zeros(shape),
    "equal": _equal,
    "sparse": _sparse,
    "beside a mean": _beside_a_mean,
    "vanishing": lambda rng, shape, info: (
        rng.normal(size=shape) * 10.0 ** rng.uniform(np.log10(float(info.tiny)), 0)
    ),
    "exploding": lambda rng, shape, info: (
        rng.normal(size=shape) * 10.0 ** rng.uniform(0, np.log10(float(info.max)))
    ),
    "mixed magnitudes": lambda rng, shape, info: _log_uniform(
        rng, shape, float(info.smallest_subnormal), float(info.max)
    ),
    "subnormal": lambda rng, shape, info: rng.uniform(-1, 1, shape) * float(info.tiny),
    "largest": lambda rng, shape, info: (
        rng.choice([-1.0, 0.0, 1.0], shape) * float(info.max)
    ),
}


@st.composite
def finite_values(draw, shape, dtype):
    """A NumPy array of finite elements: anything that the dtype can hold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    distribution = DISTRIBUTIONS[draw(st.sampled_from(sorted(DISTRIBUTIONS)))]
    info = jnp.finfo(dtype)

    def part():
        limit = float(info.max)
        return np.clip(distribution(rng, shape, info), -limit, limit)

    if jnp.issubdtype(dtype, np.complexfloating):
        return np.asarray(part() + 1j * part(), dtype)
    return np.asarray(part(), dtype)


# --- Leaves ---------------------------------------------------------------------------


@st.composite
def float_leaves(draw, shapes=SHAPES, dtypes=FLOATS):
    values = draw(
        finite_values(draw(st.sampled_from(shapes)), draw(st.sampled_from(dtypes)))
    )
    return values if draw(st.integers(0, 4)) == 4 else jnp.asarray(values)


BYSTANDERS = st.sampled_from(
    [
        None,
        optax.MaskedNode(),
        3,
        True,
        np.int8(-3),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array([[True, False]]),
        np.zeros((2, 3), jax.dtypes.float0),
    ]
)
"""What holds no gradient: it passes through, and belongs to no layer."""

PYTHON_FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)

LEAVES = st.one_of(float_leaves(), float_leaves(), BYSTANDERS, PYTHON_FLOATS)


# --- Trees of any nesting -------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A dataclass with an attribute of the name that flax's Variables use."""

    kernel: Any
    value: Any


class EquinoxModule(eqx.Module):
    weight: Any
    bias: Any


Pair = collections.namedtuple("Pair", ["w", "b"])

# Few, so that they occur again at other levels, flat and nested.
NAMES = st.sampled_from(["a", "b", "kernel", "bias", "value", "a/b", "a/b/kernel", "0"])


def _containers(children):
    named = st.dictionaries(NAMES, children, max_size=3)
    return st.one_of(
        named,
        named.map(flax.core.FrozenDict),
        st.dictionaries(st.integers(0, 3), children, max_size=3),  # nnx's lists
        st.dictionaries(st.tuples(NAMES, NAMES), children, max_size=2),
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.builds(Module, children, children),
        st.builds(EquinoxModule, children, children),
        st.builds(Pair, children, children),
    )


def any_trees(leaves=LEAVES):
    """Anything nested in anything, down to one bare leaf."""
    return st.recursive(leaves, _containers, max_leaves=8)


# --- Networks, in the conventions of the libraries that people use --------------------

# A convention takes layers (weight, bias) and returns their tree.
Layers = list[tuple[Any, Any]]


def linen(layers: Layers):
    dense = {f"Dense_{i}": {"kernel": w, "bias": b} for i, (w, b) in enumerate(layers)}
    norm = {"scale": np.ones(3, np.float32), "bias": np.zeros(3, np.float32)}
    return {"params": dense | {"LayerNorm_0": norm}}


def linen_frozen(layers: Layers):
    return flax.core.freeze(linen(layers))


def linen_flat(layers: Layers):
    return flax.traverse_util.flatten_dict(linen(layers))


def optax_flat(layers: Layers):
    return flax.traverse_util.flatten_dict(linen(layers), sep="/")


def nnx_pure(layers: Layers):
    blocks = {i: {"kernel": w, "bias": b} for i, (w, b) in enumerate(layers)}
    return {"blocks": blocks}


def nnx_state(layers: Layers):
    return nnx.State(jax.tree.map(nnx.Param, nnx_pure(layers)))


def haiku(layers: Layers):
    return {f"mlp/~/linear_{i}": {"w": w, "b": b} for i, (w, b) in enumerate(layers)}


def equinox(layers: Layers):
    return {"layers": [EquinoxModule(w, b) for w, b in layers]}


def dataclasses_in_tuples(layers: Layers):
    return tuple(Module(w, b) for w, b in layers)


def stax(layers: Layers):
    return [part for layer in layers for part in (layer, ())]


def flat_list(layers: Layers):
    return [leaf for layer in layers for leaf in layer]


def dotted(layers: Layers):
    return {
        f"layers.{i}.{name}": leaf
        for i, layer in enumerate(layers)
        for name, leaf in zip(("weight", "bias"), layer, strict=True)
    }


CONVENTIONS = (
    linen,
    linen_frozen,
    linen_flat,
    optax_flat,
    nnx_pure,
    nnx_state,
    haiku,
    equinox,
    dataclasses_in_tuples,
    stax,
    flat_list,
    dotted,
)


@st.composite
def networks(draw, dtypes=FLOATS) -> Layers:
    """Layers of a weight and a bias, one dtype for both."""
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.sampled_from([(2, 3), (1, 1), (3, 2, 3)]))
        dtype = draw(st.sampled_from(dtypes))
        weight = draw(finite_values(shape, dtype))
        bias = draw(finite_values(shape[-1:], dtype))
        layers.append((jnp.asarray(weight), jnp.asarray(bias)))
    return layers


def trees(leaves=LEAVES):
    """Trees of any nesting, and networks in every convention."""
    conventional = st.builds(
        lambda convention, layers: convention(layers),
        st.sampled_from(CONVENTIONS),
        networks(),
    )
    return st.one_of(any_trees(leaves), conventional)
