"""The scale of a layer, of a term and of predictions, over the whole range."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from definitions import random_layer, scale, wide

import stablegrad_optax as sg


def layer_std(x, **options):
    return sg.layer_scales(x, **options)["."]


def layer_rms(x, **options):
    return layer_std(x, statistic="rms", **options)


def term_rms(x):
    return sg.term_scales({"term": x})["term"]


STATISTIC = {
    layer_std: "std",
    layer_rms: "rms",
    term_rms: "rms",
    sg.reference_scale: "std",
}
every_measure = pytest.mark.parametrize("measure", STATISTIC, ids=lambda f: f.__name__)
both_statistics = pytest.mark.parametrize("measure", [layer_std, layer_rms])


@functools.cache
def compiled(measure, **options):
    return jax.jit(functools.partial(measure, **options))


def assert_is_the_definition(measure, x, rtol=1e-5):
    expected = scale(x, STATISTIC[measure])
    np.testing.assert_allclose(compiled(measure)(x), expected, rtol=rtol)


SHAPE = 48, 40


def normal(scale=1.0, mean=0.0, shape=SHAPE, seed=0):
    x = np.random.default_rng(seed).normal(mean, 1.0, shape) * scale
    return x.astype(np.float32)


# --- The range ---


@every_measure
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64", "float16"])
def test_right_over_the_whole_range(measure, dtype):
    whole = {"float16": range(-7, 5)}.get(dtype, range(-18, 16))
    for exponent in whole:
        x = random_layer(*SHAPE, scale=0.9 * 10.0**exponent, dtype=dtype)["kernel"]
        x = jnp.where(jnp.isfinite(x), x, 0)
        assert_is_the_definition(measure, x, 1e-3)


@both_statistics
@pytest.mark.parametrize("size", [1e-18, 1e15])
def test_right_for_ten_million_elements(measure, size):
    x = np.tile(normal(size, mean=0.5, shape=(10, 1000)), (1000, 1))
    assert_is_the_definition(measure, x, 1e-3)


@every_measure
@pytest.mark.parametrize("size", [4, 10_000, 16_384, 16_385, 120_000])
def test_constants_that_xla_knows_while_it_compiles(measure, size):
    constants = np.array([0.0, 1e-14, 1e-5, -1.0, 3e4, 1e9], np.float32)
    got = jax.jit(lambda: [measure(jnp.full((size, 1), c)) for c in constants])()
    floor = 16 if STATISTIC[measure] == "std" else 1
    np.testing.assert_allclose(got, np.abs(constants) / floor, rtol=1e-3)


# --- Particular elements ---


@pytest.mark.parametrize("mean", [1.0, 3.0, 10.0, 15.0, 17.0, 100.0, 1e6])
def test_the_floor_is_reached_continuously(mean):
    assert_is_the_definition(layer_std, normal(mean=mean), 1e-3)


@pytest.mark.parametrize("size", [1e-17, 1.0])
def test_elements_that_cancel_exactly_are_not_zero(size):
    x = np.full(SHAPE, size, np.float32)
    x[:, ::2] *= -1
    np.testing.assert_allclose(compiled(layer_std)(x), size, rtol=1e-4)


@every_measure
@pytest.mark.parametrize("value", [1.0, -0.1, 1e-18, 1e15])
def test_a_single_element_has_its_magnitude(measure, value):
    x = np.full((1, 1), value, np.float32)
    np.testing.assert_allclose(compiled(measure)(x), abs(value), rtol=1e-6)


@every_measure
def test_zeros_and_nan(measure):
    assert compiled(measure)(np.zeros(SHAPE, np.float32)) == 0
    assert np.isnan(compiled(measure)(normal() + np.float32(np.nan)))


# --- Several leaves, several layers ---


@every_measure
@pytest.mark.parametrize(
    "dtypes",
    [("float32",) * 3, ("bfloat16", "float32"), ("float16", "complex64", "float32")],
)
def test_leaves_are_pooled(measure, dtypes):
    leaves = [
        random_layer(5, 2 + i, seed=i, dtype=dtype)["kernel"] + i
        for i, dtype in enumerate(dtypes)
    ]
    options = {"group_by": "tree"} if measure in (layer_std, layer_rms) else {}
    got = measure(leaves, **options)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, scale(leaves, STATISTIC[measure]), rtol=1e-5)


@both_statistics
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_slices_are_layers_of_their_own(measure, axis):
    powers = np.logspace(-16, 14, 6)
    powers[0] = 0
    x = normal(shape=(5, 4, 6)) * powers
    x = np.moveaxis(x, -1, axis).astype(np.float32)
    expected = [scale(part, STATISTIC[measure]) for part in np.moveaxis(x, axis, 0)]
    got = compiled(measure, stack_axis=axis)(x)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# --- Derivatives ---


@every_measure
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_derivative_is_that_of_the_formula(measure, size):
    """dσ/dx = (x - m) / (N σ), or x / (N rms)."""
    x = normal(size, mean=0.3)
    wide_x, statistic = wide(x), STATISTIC[measure]
    centred = wide_x - (wide_x.mean() if statistic == "std" else 0)
    expected = centred / (x.size * scale(x, statistic))
    got = jax.jit(jax.grad(measure))(x)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-8)


@every_measure
@pytest.mark.parametrize("value", [0.0, 2.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_derivative_is_finite_where_the_std_is_zero(measure, value, dtype):
    for shape in [(1, 1), (4, 3)]:
        derivative = jax.grad(measure)(jnp.full(shape, value, dtype))
        chex.assert_tree_all_finite(derivative)


def test_second_derivative_and_vmap():
    x = normal(shape=(3, 4, 5))
    for transform in (jax.vmap, lambda f: jax.vmap(jax.hessian(f))):
        got, expected = (jax.jit(transform(f))(x) for f in (layer_std, jnp.std))
        np.testing.assert_allclose(got, expected, atol=1e-5)
