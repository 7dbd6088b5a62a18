"""Any gradients in any layers: StableGrad against its definition in float64.

Operations run one by one (`jax.disable_jit`) on arrays of few shapes, so that an
example costs no compilation. `HYPOTHESIS_PROFILE=long` runs 2,000.
"""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from definitions import wide
from hypothesis import assume, given
from hypothesis import strategies as st
from test_layers import (
    CONVENTIONS,
    OPTIONS,
    Label,
    assert_is_the_definition,
    members_of_layers,
    slices,
    update,
)

import stablegrad_optax as sg

# A few are slow: the first of a shape, which compiles its operations.
examples = hypothesis.settings(
    max_examples=40, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)


@pytest.fixture(autouse=True, scope="module")
def operations_one_by_one():
    with jax.disable_jit():
        yield


def any_size(rng, info, shape=()):
    """Uniform in the logarithm, over the whole range of a dtype."""
    ends = np.log10(float(info.tiny)), np.log10(float(info.max))
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
DTYPES = ["float32", "bfloat16", "float16", "complex64"]
DTYPES_OF_X64 = ["float64", "complex128"]
# Of few leaves.
SMALL = ["bare array", "haiku", "no elements", "single elements", "stax"]
TREES = {name: (CONVENTIONS[name], {}) for name in SMALL} | OPTIONS


@st.composite
def gradients(draw, labels, dtypes):
    """Arrays of finite elements in the place of the labels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def gradient(label):
        if not isinstance(label, Label):
            return label
        distribution = DISTRIBUTIONS[draw(st.sampled_from(sorted(DISTRIBUTIONS)))]
        dtype = draw(st.sampled_from(dtypes))
        info = jnp.finfo(dtype)
        largest = float(info.max)
        parts = [
            np.clip(distribution(rng, info, label.shape), -largest, largest)
            for _ in range(2)
        ]
        is_complex = np.issubdtype(dtype, np.complexfloating)
        return jnp.asarray(parts[0] + 1j * parts[1] if is_complex else parts[0], dtype)

    return list(map(gradient, labels))


any_tree = st.sampled_from(sorted(TREES))
any_statistic = st.sampled_from(["std", "rms"])


@examples
@given(
    st.data(),
    any_tree,
    any_statistic,
    st.sampled_from([0.0, 1e-6, 0.5, 1, 1e6]),
    st.sampled_from([None, 1e-3, 1.0, np.float32(1e6)]),
    st.booleans(),
)
def test_finite_gradients(data, name, statistic, reference, max_gain, x64):
    labelled, options = TREES[name]
    options = options | {"statistic": statistic}
    labels, structure = jax.tree.flatten(labelled)
    with jax.enable_x64(x64):
        before = data.draw(gradients(labels, DTYPES_OF_X64 if x64 else DTYPES))
        tree = structure.unflatten(before)
        updates = update(tree, reference, max_gain=max_gain, **options)
        scales = sg.layer_scales(tree, **options)
    after, found = jax.tree.flatten(updates)
    assert found == structure
    for got, leaf in zip(after, before, strict=True):
        assert np.shape(got) == np.shape(leaf)
        assert getattr(got, "dtype", None) == getattr(leaf, "dtype", None)
    max_gain = np.inf if max_gain is None else max_gain
    assert_is_the_definition(
        labels, before, after, scales, statistic, reference, max_gain
    )


@examples
@given(st.data(), any_tree, any_statistic, st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_stays_in_its_layer(data, name, statistic, bad):
    labelled, options = TREES[name]
    labels, structure = jax.tree.flatten(labelled)
    before = data.draw(gradients(labels, DTYPES))
    floats = [
        i for i, la in enumerate(labels) if isinstance(la, Label) and 0 not in la.shape
    ]
    assume(floats)
    index = data.draw(st.sampled_from(floats), "leaf")
    is_bad = np.zeros(labels[index].shape, bool)
    is_bad.flat[data.draw(st.integers(0, is_bad.size - 1), "element")] = True
    poisoned = jnp.where(is_bad, jnp.asarray(bad, before[index].dtype), before[index])

    def updated(leaves):
        return jax.tree.leaves(
            update(structure.unflatten(leaves), statistic=statistic, **options)
        )

    expected = updated(before)
    got = updated([*before[:index], poisoned, *before[index + 1 :]])
    assert not np.isfinite(wide(got[index])[is_bad]).any()
    for (_, i), members in members_of_layers(labels).items():
        if any(j == index and slices(la, is_bad)[i].any() for j, la in members):
            continue
        for j, label in members:
            pair = (wide(slices(label, np.asarray(x[j]))[i]) for x in (got, expected))
            np.testing.assert_allclose(*pair, rtol=1e-2)
