"""The scale of a layer: right over the whole range, and one read where it can be."""

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablegrad_optax import _forms, _statistics
from stablegrad_optax._reductions import Slices
from stablegrad_optax._statistics import layer_statistics

# One layer on each side of the size at which the statistic is taken in one read.
SMALL, LARGE = (48, 40), (300, 256)
SHAPES = [SMALL, LARGE]


pytestmark = pytest.mark.usefixtures("platform")


def test_shapes_are_on_both_sides():
    assert np.prod(SMALL) <= _statistics._SMALL_LAYER < np.prod(LARGE)


def normal(shape, seed=0, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1.0, shape)


def scale_of(x, statistic="std", stack_axis=None):
    measure = jax.jit(
        lambda x: layer_statistics([[Slices(x, stack_axis)]], statistic)[0]
    )
    return np.asarray(measure(jnp.asarray(x)), np.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("statistic", ["std", "rms"])
@pytest.mark.parametrize("exponent", [-34, -30, -22, -16, -8, 0, 8, 17, 19, 30, 36])
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_right_from_1e_34_to_1e36(shape, statistic, exponent, mean):
    x = (normal(shape, mean=mean) * 10.0**exponent).astype(np.float32)
    x64 = x.astype(np.float64)
    expected = x64.std() if statistic == "std" else np.sqrt(np.mean(x64**2))
    np.testing.assert_allclose(scale_of(x, statistic), expected, rtol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean", [3.0, 30.0, 300.0])
def test_no_cancellation_beside_a_large_mean(shape, mean):
    x = normal(shape, mean=mean).astype(np.float32)
    expected = x.astype(np.float64).std()
    np.testing.assert_allclose(scale_of(x), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_sparse_entry(shape):
    x = np.zeros(shape, np.float32)
    x[0, 0] = 3.0
    expected = x.astype(np.float64).std()
    # Beside the large square each of the thousands of small ones is rounded.
    np.testing.assert_allclose(scale_of(x), expected, rtol=2e-5)


@pytest.mark.parametrize("shape", [*SHAPES, (3000, 1000), (1, 1), (1, 7)])
@pytest.mark.parametrize("value", [1.0, -0.1, 1e-30, 3e33])
def test_equal_entries_have_their_rms(shape, value):
    np.testing.assert_allclose(
        scale_of(np.full(shape, value, np.float32)), abs(value), rtol=1e-5
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_but_for_rounding(shape):
    x = np.full(shape, 0.1, np.float32)
    x[::2] = np.nextafter(np.float32(0.1), np.float32(1))
    np.testing.assert_allclose(scale_of(x), 0.1, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("statistic", ["std", "rms"])
def test_zero(shape, statistic):
    assert scale_of(np.zeros(shape, np.float32), statistic) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("statistic", ["std", "rms"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_gives_nan_in_its_own_layer(shape, statistic, bad):
    x = normal(shape).astype(np.float32)
    broken = x.copy()
    broken[1, 2] = bad
    layers = [[Slices(jnp.asarray(v), None)] for v in (x, broken, x)]
    first, second, third = layer_statistics(layers, statistic)
    assert np.isnan(second)
    assert np.isfinite(first)
    assert first == third


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "accumulates_in", "rtol"),
    [
        (jnp.float16, jnp.float32, 1e-6),
        (jnp.bfloat16, jnp.float32, 1e-6),
        (jnp.float32, jnp.float32, 1e-6),
        (jnp.complex64, jnp.float32, 1e-6),
    ],
)
def test_dtypes(shape, dtype, accumulates_in, rtol):
    x = normal(shape)
    if dtype == jnp.complex64:
        x = x + 1j * normal(shape, seed=1) + (2 - 1j)
    x = jnp.asarray(x, dtype)
    (scale,) = layer_statistics([[Slices(x, None)]])
    assert scale.dtype == accumulates_in
    wide = np.complex128 if dtype == jnp.complex64 else np.float64
    np.testing.assert_allclose(scale, np.asarray(x).astype(wide).std(), rtol=rtol)


def test_a_layer_pools_its_leaves():
    a, b, c = normal((5, 7)), normal((3, 2), 1, mean=4.0), normal((2, 2, 9), 2)
    layer = [Slices(jnp.asarray(x, jnp.float32), None) for x in (a, b, c)]
    pooled = np.concatenate([np.ravel(x) for x in (a, b, c)])
    np.testing.assert_allclose(layer_statistics([layer])[0], pooled.std(), rtol=1e-6)


@pytest.mark.parametrize(
    "dtypes", [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.complex64)]
)
def test_a_layer_pools_dtypes(dtypes):
    values = [jnp.asarray(normal((4, 6), i), dtype) for i, dtype in enumerate(dtypes)]
    pooled = np.concatenate([np.ravel(np.asarray(v).astype(complex)) for v in values])
    (scale,) = layer_statistics([[Slices(v, None) for v in values]])
    np.testing.assert_allclose(scale, pooled.std(), rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("statistic", ["std", "rms"])
@pytest.mark.parametrize("shape", [(6, 5, 4), (64, 48, 32)])
def test_slices_are_layers_of_their_own(axis, statistic, shape):
    x = normal(shape)
    # Scales over the whole range side by side: a vector, none of which is the others'.
    powers = np.logspace(-30, 30, shape[axis])
    x = np.moveaxis(np.moveaxis(x, axis, -1) * powers, -1, axis).astype(np.float32)
    others = tuple(a for a in range(3) if a != axis)
    x64 = x.astype(np.float64)
    expected = x64.std(others) if statistic == "std" else np.sqrt((x64**2).mean(others))
    np.testing.assert_allclose(scale_of(x, statistic, axis), expected, rtol=2e-6)


LIMIT = float(np.float32(1e36))
# Subnormal numbers are zero to XLA's CPU backend.
finite = st.floats(-LIMIT, LIMIT, width=32, allow_subnormal=False)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3), elements=finite)
)
def test_bounds_for_any_finite_entries(x):
    """max|x| / σ stays below a constant times sqrt(N), for whatever entries."""
    scale = scale_of(x)
    largest = np.abs(x.astype(np.float64)).max()
    if largest == 0:
        assert scale == 0
        return
    factor = _forms.DEGENERATE + 1.01
    assert np.isfinite(scale)
    assert largest / scale <= factor * np.sqrt(x.size)
    assert scale <= largest * 1.00001


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("statistic", ["std", "rms"])
@pytest.mark.parametrize("exponent", [-30, 0, 30])
def test_derivative_is_that_of_the_formula(shape, statistic, exponent):
    """dσ/dx = (x - m) / (N σ), or x / (N rms)."""
    x64 = normal(shape, mean=0.3) * 10.0**exponent
    x = jnp.asarray(x64, jnp.float32)
    got = jax.grad(lambda x: layer_statistics([[Slices(x, None)]], statistic)[0])(x)
    if statistic == "std":
        expected = (x64 - x64.mean()) / (x64.size * x64.std())
    else:
        expected = x64 / (x64.size * np.sqrt(np.mean(x64**2)))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("statistic", ["std", "rms"])
@pytest.mark.parametrize("value", [0.0, 2.0])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_derivative_is_finite_where_the_std_is_zero(statistic, value, shape, dtype):
    def scale(x):
        return layer_statistics([[Slices(x, None)]], statistic)[0]

    derivative = jax.grad(scale)(jnp.full(shape, value, dtype))
    chex.assert_tree_all_finite(derivative)


def test_second_derivative_and_vmap():
    x = jnp.asarray(normal((3, 4, 5)), jnp.float32)

    def scale(x):
        return layer_statistics([[Slices(x, None)]])[0]

    def plain(x):
        return jnp.std(x)

    for transform in (jax.vmap, lambda f: jax.vmap(jax.hessian(f))):
        chex.assert_trees_all_close(transform(scale)(x), transform(plain)(x), atol=1e-5)


def test_vmap_over_large_layers():
    x = normal((3, *LARGE)) * np.array([1e-30, 1.0, 1e30])[:, None, None]
    got = jax.vmap(lambda x: layer_statistics([[Slices(x, None)]])[0])(
        jnp.asarray(x, jnp.float32)
    )
    np.testing.assert_allclose(got, x.std((1, 2)), rtol=1e-5)


def equations(jaxpr, conditional=False):
    """Each equation of a jaxpr and those within, and whether it is in a branch."""
    for equation in jaxpr.eqns:
        yield equation, conditional
        is_cond = conditional or equation.primitive.name == "cond"
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from equations(getattr(inner, "jaxpr", inner), is_cond)


def test_large_layers_are_read_once(platform):
    """Σ x and Σ x² of each, independent of each other; the rest is in a condition."""
    plan = _forms.Plan("std", (None,), None, is_small=False)
    choose = {
        "cpu": _statistics._layer_by_layer,
        "accelerator": _statistics._all_layers,
    }[platform]

    def scales(x, y):
        then = _statistics.scale_itself
        return choose([plan, plan], then, [[x], [y]], ())

    x, y = jnp.zeros(LARGE), jnp.zeros((2, *LARGE))
    found = [
        (equation.invars[0].aval.size, conditional)
        for equation, conditional in equations(jax.make_jaxpr(scales)(x, y).jaxpr)
        if equation.primitive.name in ("reduce_sum", "reduce_max", "reduce")
    ]
    unconditional = [size for size, conditional in found if not conditional]
    assert sorted(unconditional) == [x.size, x.size, y.size, y.size]
    # The centred form: the largest entry, the sum, and two sums of deviations.
    assert len([size for size, conditional in found if conditional]) == 8


def test_float64_is_a_matter_of_small_layers_on_a_cpu(platform):
    layers = [[Slices(jnp.zeros(shape), None)] for shape in SHAPES]
    jaxpr = jax.make_jaxpr(lambda: layer_statistics(layers))().jaxpr
    found = {v.aval.dtype for e, _ in equations(jaxpr) for v in e.outvars}
    assert (np.dtype(np.float64) in found) == (platform == "cpu")


def test_unknown_statistic():
    with pytest.raises(ValueError, match="statistic must be one of 'std', 'rms'"):
        layer_statistics([], "var")
