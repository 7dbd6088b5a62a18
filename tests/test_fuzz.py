"""Any gradients under any options: StableGrad against its definition in float64.

Operations run one by one (`jax.disable_jit`) on arrays of few shapes, so that an
example costs no compilation. `HYPOTHESIS_PROFILE=long` runs 2,000.
"""

import collections
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from definitions import elements, scale, wide
from hypothesis import assume, given
from hypothesis import strategies as st

import stablegrad_optax as sg

# A few are slow: the first of a shape, which compiles its operations.
examples = hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow])


@pytest.fixture(autouse=True, scope="module")
def operations_one_by_one():
    with jax.disable_jit():
        yield


# --- Gradients and options ---


def any_size(rng, info, shape=()):
    """Uniform in the logarithm, over the whole range of a dtype."""
    ends = np.log10(float(info.smallest_subnormal)), np.log10(float(info.max))
    return 10.0 ** rng.uniform(*ends, shape)


# Each takes a generator, the finfo of a real dtype and a shape, and returns float64.
DISTRIBUTIONS = {
    "ordinary": lambda rng, info, n: rng.normal(size=n),
    "of any size": lambda rng, info, n: rng.normal(size=n) * any_size(rng, info),
    "of mixed sizes": lambda rng, info, n: rng.normal(size=n) * any_size(rng, info, n),
    "beside a mean": lambda rng, info, n: rng.normal(10.0 ** rng.uniform(0, 4), 1, n),
    "equal": lambda rng, info, n: np.full(n, any_size(rng, info)),
    "sparse": lambda rng, info, n: rng.normal(size=n) * rng.integers(2, size=n),
    "zero": lambda rng, info, n: np.zeros(n),
    "largest": lambda rng, info, n: rng.choice([-1.0, 0, 1.0], n) * float(info.max),
}
DTYPES = "float32", "bfloat16", "float16", "complex64"
SHAPES = (2, 3), (3,), (), (1, 1), (0, 3), (3, 2, 3)


@st.composite
def gradients(draw):
    """An array of finite elements: anything that its dtype can hold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    distribution = DISTRIBUTIONS[draw(st.sampled_from(sorted(DISTRIBUTIONS)))]
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
    info = jnp.finfo(dtype)

    def part():
        x = distribution(rng, info, shape)
        return np.clip(x, -float(info.max), float(info.max))

    x = part() + 1j * part() if dtype == "complex64" else part()
    return jnp.asarray(x, dtype)


others = st.sampled_from([None, optax.MaskedNode(), 3, True, np.arange(6)])
leaves = gradients() | gradients() | others
modules = st.dictionaries(st.sampled_from(["kernel", "bias", "v"]), leaves, max_size=3)
trees = st.dictionaries(st.sampled_from(["a", "b", "c"]), modules, max_size=3)

IS_WEIGHT = {
    "default": None,
    "all": lambda path, leaf: True,
    "none": lambda path, leaf: False,
    "vectors": lambda path, leaf: np.bool_(leaf.ndim == 1),
}


@st.composite
def groupings(draw):
    group_by = draw(st.sampled_from(["layer", "leaf", "tree", "by name and rank"]))
    if group_by == "by name and rank":
        group_by = by_name_and_rank
    axis = draw(st.sampled_from([None, 0, 1, -1]))
    length = draw(st.sampled_from([2, 3]))

    def stack_axis(path, leaf):
        """The axis, where it has the length, so that all leaves of a layer agree."""
        is_there = axis is not None and -leaf.ndim <= axis < leaf.ndim
        return axis if is_there and leaf.shape[axis] == length else None

    return {
        "group_by": group_by,
        "is_weight": IS_WEIGHT[draw(st.sampled_from(sorted(IS_WEIGHT)))],
        "stack_axis": stack_axis,
        "statistic": draw(st.sampled_from(["std", "rms"])),
    }


def by_name_and_rank(path, leaf):
    return path[-1].key, leaf.ndim


def update(grads, reference=1.0, max_gain=None, **grouping):
    tx = sg.stablegrad(max_gain=max_gain, **grouping)
    # A library must not promote its users' dtypes behind their backs.
    with jax.numpy_dtype_promotion("strict"):
        return tx.update(grads, tx.init(grads), reference=reference)[0]


# --- The definition ---


def is_inexact(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), np.inexact)


def find_layers(tree, group_by, is_weight, stack_axis, statistic):
    """All layers, each a list of (index of the leaf, is it a weight, its part).

    The part is where the layer is in the leaf: all of it, or a slice of it.
    """
    found = []
    for index, (path, x) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        if is_inexact(x):
            axis = stack_axis(path, x)
            found.append((index, path, x, axis, x.ndim - (axis is not None)))
    ranks = collections.defaultdict(lambda: [2])
    for _, path, x, axis, rank in found:
        ranks[path[0], axis is None] += [rank] * (x.size > 0)
    layers = collections.defaultdict(list)
    for index, path, x, axis, rank in found:
        if is_weight is None:
            weight = rank == max(ranks[path[0], axis is None])
        else:
            weight = is_weight(path, x)
        if callable(group_by):
            key = group_by(path, x)
        else:
            key = {"layer": path[:1], "leaf": path, "tree": ()}[group_by]
        is_stacked = axis is not None and group_by != "tree"
        for i in range(x.shape[axis] if is_stacked else 1):
            part = [slice(None)] * x.ndim
            if is_stacked:
                part[axis] = i
            member = index, bool(weight and x.size), tuple(part)
            layers[key, is_stacked, i].append(member)
    return list(layers.values())


ROUNDING = {"float32": 2e-3, "complex64": 2e-3, "bfloat16": 1e-2, "float16": 4e-3}


def assert_is_the_definition(grads, updates, grouping, reference=1.0, max_gain=np.inf):
    """γ = ρ / σ for all members of each layer; elements beyond their dtype saturate."""
    before, after = ([*map(np.asarray, jax.tree.leaves(t))] for t in (grads, updates))
    measured = sg.layer_scales(grads, **grouping).values()
    measured = itertools.chain(*map(np.ravel, measured))
    unchanged = set(range(len(before)))
    for layer in find_layers(grads, **grouping):
        weights = [before[i][part] for i, is_weight, part in layer if is_weight]
        if not weights:
            continue
        unchanged -= {index for index, *_ in layer}
        sigma, rms = scale(weights, grouping["statistic"]), scale(weights, "rms")
        found, gain = next(measured), min(reference / sigma, max_gain) if sigma else 1
        is_in_range = rms == 0 or 1e-17 < rms < 1e15
        if is_in_range:
            np.testing.assert_allclose(found, sigma, rtol=1e-3)
        for index, is_weight, part in layer:
            dtype, x = before[index].dtype, wide(before[index][part])
            got, info = wide(after[index][part]), jnp.finfo(dtype)
            assert np.isfinite(got).all()
            if is_in_range:
                # Devices may take subnormal numbers for zero.
                lost = float(info.tiny) + float(jnp.finfo("float32").tiny) * gain
                for of in (np.real, np.imag):
                    y = np.clip(gain * of(x), -float(info.max), float(info.max))
                    np.testing.assert_allclose(of(got), y, ROUNDING[dtype.name], lost)
            elif rms > 1:
                assert (np.abs(got) <= 1.001 * np.abs(x)).all()
            elif is_weight:  # unchanged, or rescaled
                bound = 17.1 * reference * np.sqrt(elements(weights).size)
                assert (np.abs(got) <= np.maximum(bound, np.abs(x))).all()
    assert not [*measured]
    for index in unchanged:
        np.testing.assert_array_equal(after[index], before[index])


# --- Properties ---


@examples
@given(
    trees,
    groupings(),
    st.sampled_from([0.0, 1e-6, 0.5, 1, 1e6]),
    st.sampled_from([None, 1e-3, 1.0, np.float32(1e6)]),
)
def test_finite_gradients(grads, grouping, reference, max_gain):
    updates = update(grads, reference, max_gain, **grouping)
    assert jax.tree.structure(updates) == jax.tree.structure(grads)
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True)
    for got, leaf in pairs:
        assert np.shape(got) == np.shape(leaf)
        assert jnp.result_type(got) == jnp.result_type(leaf)
    max_gain = np.inf if max_gain is None else max_gain
    assert_is_the_definition(grads, updates, grouping, reference, max_gain)


@examples
@given(trees, groupings(), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_what_is_not_finite_stays_in_its_layer(grads, grouping, bad, data):
    values, structure = jax.tree.flatten(grads)
    floats = [i for i, x in enumerate(values) if is_inexact(x) and np.size(x)]
    assume(floats)
    index = data.draw(st.sampled_from(floats), "leaf")
    poisoned = np.array(values[index])
    at = data.draw(st.integers(0, poisoned.size - 1), "element")
    poisoned.flat[at] = bad
    broken = structure.unflatten([*values[:index], poisoned, *values[index + 1 :]])
    updates = update(broken, **grouping)
    got = [*map(np.asarray, jax.tree.leaves(updates))]
    expected = [*map(np.asarray, jax.tree.leaves(update(grads, **grouping)))]
    assert not np.isfinite(wide(got[index]).flat[at])
    for layer in find_layers(grads, **grouping):
        parts = [(i, part) for i, _, part in layer]
        if not any(i == index and np.isin(at, positions(got[i])[p]) for i, p in parts):
            for i, part in parts:
                np.testing.assert_allclose(
                    wide(got[i][part]), wide(expected[i][part]), rtol=1e-2
                )


def positions(x):
    return np.arange(x.size).reshape(x.shape)
