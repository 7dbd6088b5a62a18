"""The scale of a layer: right over the whole range, and in one pass where it can be."""

import collections

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablegrad_optax import _scale
from stablegrad_optax._scale import Slices

# On both sides of the size up to which units are taken at once.
SMALL, LARGE = (48, 40), (300, 256)
SHAPES = [SMALL, LARGE]

both_shapes = pytest.mark.parametrize("shape", SHAPES)
both_statistics = pytest.mark.parametrize("statistic", ["std", "rms"])


def test_shapes_are_on_both_sides():
    assert np.prod(SMALL) <= _scale._SMALL_LAYER < np.prod(LARGE)


def normal(shape, seed=0, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1.0, shape)


def scales(layers, statistic="std"):
    return [_scale.value(scale) for scale in _scale.scales(layers, statistic)]


def scale(x, statistic="std", stack_axis=None):
    """Of one layer with one leaf; differentiable."""
    return scales([[Slices(x, stack_axis)]], statistic)[0]


def measured(x, statistic="std", stack_axis=None):
    of = jax.jit(lambda x: scale(x, statistic, stack_axis))
    return np.asarray(of(jnp.asarray(x)), np.float64)


def by_definition(x, statistic="std", axes=None):
    x = np.asarray(x).astype(np.complex128 if np.iscomplexobj(x) else np.float64)
    rms = np.sqrt(np.mean(np.abs(x) ** 2, axes))
    return rms if statistic == "rms" else np.maximum(x.std(axes), rms / 16)


@both_shapes
@both_statistics
@pytest.mark.parametrize("exponent", [-34, -30, -22, -16, -8, 0, 8, 17, 19, 30, 36])
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_right_from_1e_34_to_1e36(shape, statistic, exponent, mean):
    x = (normal(shape, mean=mean) * 10.0**exponent).astype(np.float32)
    expected = by_definition(x, statistic)
    np.testing.assert_allclose(measured(x, statistic), expected, rtol=5e-6)


@both_shapes
@pytest.mark.parametrize("exponent", [-34, -30, 0])
def test_elements_that_cancel_exactly_are_not_zero(shape, exponent):
    """Their sum is zero, and so are their squares where they underflow."""
    x = np.full(shape, 10.0**exponent, np.float32)
    x[:, ::2] *= -1
    # The rounding errors of a sum of equal squares do not cancel.
    np.testing.assert_allclose(measured(x), x.max(), rtol=5e-5)


@both_shapes
@pytest.mark.parametrize("mean", [1.0, 3.0, 10.0, 15.0, 17.0, 100.0, 1e6])
def test_the_floor_is_reached_continuously(shape, mean):
    x = normal(shape, mean=mean).astype(np.float32)
    # The mean square, of which std² is 1/256 at the floor, is accurate to 1e-6.
    np.testing.assert_allclose(measured(x), by_definition(x), rtol=1e-3)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3, 0.045, 0.05, 0.1])
def test_nearly_equal_elements_have_nearly_the_same_scale(spread):
    scale = measured(np.array([[1.0, 1.0 + spread]], np.float32))
    np.testing.assert_allclose(scale, 1 / 16, rtol=0.06)


@both_shapes
def test_one_sparse_element(shape):
    x = np.zeros(shape, np.float32)
    x[0, 0] = 3.0
    # Beside the large square each of the thousands of small ones is rounded.
    np.testing.assert_allclose(measured(x), by_definition(x), rtol=2e-5)


@pytest.mark.parametrize("shape", [*SHAPES, (3000, 1000), (1, 7)])
@pytest.mark.parametrize("value", [1.0, -0.1, 1e-30, 3e33])
def test_equal_elements_have_a_sixteenth_of_their_magnitude(shape, value):
    x = np.full(shape, value, np.float32)
    np.testing.assert_allclose(measured(x), abs(value) / 16, rtol=1e-4)


@pytest.mark.parametrize("value", [1.0, -0.1, 8e-38, 3e38])
def test_a_single_element_has_its_magnitude(value):
    x = np.full((1, 1), value, np.float32)
    np.testing.assert_allclose(measured(x), abs(value), rtol=1e-6)
    stacked = np.array([[1.0], [-2.0], [0.0]], np.float32) * np.float32(value / 4)
    np.testing.assert_allclose(
        measured(stacked, stack_axis=0), abs(stacked[:, 0]), rtol=1e-6
    )


@both_shapes
@both_statistics
def test_zero(shape, statistic):
    assert measured(np.zeros(shape, np.float32), statistic) == 0


@both_shapes
@both_statistics
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_gives_nan_in_its_own_layer(shape, statistic, bad):
    x = normal(shape).astype(np.float32)
    broken = x.copy()
    broken[1, 2] = bad
    layers = [[Slices(jnp.asarray(v), None)] for v in (x, broken, x)]
    first, second, third = scales(layers, statistic)
    assert np.isnan(second)
    assert np.isfinite(first)
    assert first == third


@both_shapes
@pytest.mark.parametrize(
    "dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64]
)
def test_dtypes(shape, dtype):
    x = normal(shape)
    if dtype == jnp.complex64:
        x = x + 1j * normal(shape, seed=1) + (2 - 1j)
    x = jnp.asarray(x, dtype)
    result = scale(x)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, by_definition(x), rtol=2e-6)


def test_a_layer_pools_its_leaves():
    a, b, c = normal((5, 7)), normal((3, 2), 1, mean=4.0), normal((2, 2, 9), 2)
    layer = [Slices(jnp.asarray(x, jnp.float32), None) for x in (a, b, c)]
    pooled = np.concatenate([np.ravel(x) for x in (a, b, c)])
    np.testing.assert_allclose(scales([layer])[0], pooled.std(), rtol=1e-6)


@pytest.mark.parametrize(
    "dtypes", [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.complex64)]
)
def test_a_layer_pools_dtypes(dtypes):
    values = [jnp.asarray(normal((4, 6), i), dtype) for i, dtype in enumerate(dtypes)]
    pooled = np.concatenate([np.ravel(np.asarray(v).astype(complex)) for v in values])
    (result,) = scales([[Slices(v, None) for v in values]])
    np.testing.assert_allclose(result, pooled.std(), rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@both_statistics
@pytest.mark.parametrize("shape", [(6, 5, 4), (64, 48, 32)])
def test_slices_are_layers_of_their_own(axis, statistic, shape):
    x = normal(shape)
    # Scales over the whole range side by side: a vector, none of which is the others'.
    powers = np.logspace(-30, 30, shape[axis])
    powers[0] = 0
    x = np.moveaxis(np.moveaxis(x, axis, -1) * powers, -1, axis).astype(np.float32)
    others = tuple(a for a in range(3) if a != axis)
    expected = by_definition(x, statistic, others)
    np.testing.assert_allclose(measured(x, statistic, axis), expected, rtol=2e-6)


# Subnormal numbers are zero to XLA's CPU backend.
SMALLEST = float(np.finfo(np.float32).tiny)
LIMIT = float(np.float32(1e36))
finite = st.floats(-LIMIT, LIMIT, width=32, allow_subnormal=False)


# Few shapes, since each is compiled.
shapes = st.sampled_from([(1, 2), (2, 2), (3, 5), (2, 3, 4)])
jitted_scale = jax.jit(scale)


@given(hnp.arrays(np.float32, shapes, elements=finite))
def test_bounds_for_any_finite_elements(x):
    """max|x| / 17√N ≤ σ ≤ max|x|, and σ is zero or a normal number."""
    sigma = np.float64(jitted_scale(x))
    largest = np.abs(x.astype(np.float64)).max()
    if largest == 0:
        assert sigma == 0
        return
    assert np.isfinite(sigma)
    assert sigma >= SMALLEST
    assert sigma >= largest / (17 * np.sqrt(x.size))
    assert sigma <= largest * 1.00001


@both_shapes
@both_statistics
@pytest.mark.parametrize("exponent", [-8, 0, 8])
def test_derivative_is_that_of_the_formula(shape, statistic, exponent):
    """dσ/dx = (x - m) / (N σ), or x / (N rms)."""
    x64 = normal(shape, mean=0.3) * 10.0**exponent
    x = jnp.asarray(x64, jnp.float32)
    got = jax.grad(lambda x: scale(x, statistic))(x)
    if statistic == "std":
        expected = (x64 - x64.mean()) / (x64.size * x64.std())
    else:
        expected = x64 / (x64.size * np.sqrt(np.mean(x64**2)))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-8)


@both_statistics
@pytest.mark.parametrize("value", [0.0, 2.0])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_derivative_is_finite_where_the_std_is_zero(statistic, value, shape, dtype):
    derivative = jax.grad(lambda x: scale(x, statistic))(jnp.full(shape, value, dtype))
    chex.assert_tree_all_finite(derivative)


def test_second_derivative_and_vmap():
    x = jnp.asarray(normal((3, 4, 5)), jnp.float32)
    for transform in (jax.vmap, lambda f: jax.vmap(jax.hessian(f))):
        chex.assert_trees_all_close(
            transform(scale)(x), transform(jnp.std)(x), atol=1e-5
        )


def test_vmap_over_large_layers():
    x = normal((3, *LARGE)) * np.array([1e-30, 1.0, 1e30])[:, None, None]
    got = jax.vmap(scale)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, x.std((1, 2)), rtol=1e-5)


# --- How often a layer is read ---


def reductions(jaxpr, conditions=0):
    """The size of the operand of each reduction, and in how many conditions it is."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("reduce_sum", "reduce_max"):
            yield equation.invars[0].aval.size, conditions
        inside = conditions + (name == "cond")
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from reductions(getattr(inner, "jaxpr", inner), inside)


def test_large_layers_are_read_once():
    """Σ x and Σ |x|² of each, independent of each other; the rest is conditional."""
    x, y = jnp.zeros(LARGE), jnp.zeros((2, *LARGE))

    def both(*values):
        return scales([[Slices(v, None)] for v in values])

    sizes = collections.defaultdict(list)
    for size, conditions in reductions(jax.make_jaxpr(both)(x, y).jaxpr):
        sizes[conditions].append(size)
    assert sorted(sizes[0]) == [x.size, x.size, y.size, y.size]
    # The largest magnitude, which tells whether a layer is zero.
    assert sorted(sizes[1]) == [x.size, y.size]
    # That again, and both sums in its units.
    assert sorted(sizes[2]) == [x.size] * 3 + [y.size] * 3


def test_one_condition_for_the_whole_tree():
    layers = [[Slices(jnp.zeros(LARGE), None)] for _ in range(5)]
    text = str(jax.make_jaxpr(lambda: scales(layers))())
    assert text.count("cond[") == 2  # one within the other


def layers_in_units(monkeypatch, *layers):
    """How many large layers are measured in units of their largest magnitude."""
    calls = []
    in_units = _scale._in_units

    def counted(layout, values):
        calls.append(layout)
        return in_units(layout, values)

    monkeypatch.setattr(_scale, "_in_units", counted)
    with jax.disable_jit():  # a condition runs the branch that it takes, and no other
        scales([[Slices(jnp.asarray(x, jnp.float32), None)] for x in layers])
    return len(calls)


@pytest.mark.parametrize("extreme", [1e-30, 1e30, np.nan])
def test_large_layers_are_measured_again_only_if_one_left_the_range(
    extreme, monkeypatch
):
    x = normal(LARGE)
    assert layers_in_units(monkeypatch, x, 1e-9 * x, 1e9 * x) == 0
    assert layers_in_units(monkeypatch, x, extreme * x) == 2


def test_a_layer_of_zeros_is_in_range(monkeypatch):
    """A frozen layer, or an expert without tokens, makes no other layer slower."""
    x = normal(LARGE)
    assert layers_in_units(monkeypatch, x, 0 * x) == 0


def test_small_layers_have_no_condition():
    text = str(jax.make_jaxpr(lambda: scale(jnp.zeros(SMALL)))())
    assert "cond[" not in text


def test_unknown_statistic():
    with pytest.raises(ValueError, match="statistic must be one of 'std', 'rms'"):
        scales([], "var")
