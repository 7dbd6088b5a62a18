"""The scale of a layer, of a term and of predictions, over the whole range."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from definitions import random_layer, scale, wide

import stablegrad_optax as sg

# All that measure one set of elements, and which statistic each of them is.
STATISTIC = {
    "layer_std": "std",
    "layer_rms": "rms",
    "term_scales": "rms",
    "reference_scale": "std",
}


def measures(x, **options):
    """Of an array, or of leaves that are pooled."""
    options = {"group_by": "tree"} | options
    return {
        "layer_std": sg.layer_scales(x, **options)["."],
        "layer_rms": sg.layer_scales(x, statistic="rms", **options)["."],
        "term_scales": sg.term_scales({"term": x})["term"],
        "reference_scale": sg.reference_scale(x),
    }


measured = jax.jit(measures)


def assert_are_the_definition(x, rtol=1e-5):
    for name, found in measured(x).items():
        expected = scale(x, STATISTIC[name])
        np.testing.assert_allclose(found, expected, rtol=rtol, err_msg=name)


SHAPE = 48, 40


def normal(scale=1.0, mean=0.0, shape=SHAPE, seed=0):
    x = np.random.default_rng(seed).normal(mean, 1.0, shape) * scale
    return x.astype(np.float32)


# --- The range ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64", "float16"])
def test_right_over_the_whole_range(dtype):
    whole = {"float16": range(-7, 5)}.get(dtype, range(-18, 16))
    for exponent in whole:
        x = random_layer(*SHAPE, scale=0.9 * 10.0**exponent, dtype=dtype)["kernel"]
        assert_are_the_definition(jnp.where(jnp.isfinite(x), x, 0), 1e-3)


def test_right_for_ten_million_elements():
    for size in (1e-18, 1e15):
        x = np.tile(normal(size, mean=0.5, shape=(10, 1000)), (1000, 1))
        assert_are_the_definition(x, 1e-3)


def test_constants_that_xla_knows_while_it_compiles():
    """Sizes are on both sides of those at which it chooses another way to sum."""
    constants = np.array([0.0, 1e-14, 1e-5, -1.0, 3e4, 1e9], np.float32)
    for size in (4, 10_000, 16_384, 16_385, 120_000):
        known = jax.jit(
            lambda n=size: [measures(jnp.full((n, 1), c)) for c in constants]
        )
        for constant, found in zip(constants, known(), strict=True):
            for name, got in found.items():
                floor = 16 if STATISTIC[name] == "std" else 1
                np.testing.assert_allclose(got, abs(constant) / floor, rtol=1e-3)


# --- Particular elements ---


@pytest.mark.parametrize("mean", [1.0, 3.0, 10.0, 15.0, 17.0, 100.0, 1e6])
def test_the_floor_is_reached_continuously(mean):
    assert_are_the_definition(normal(mean=mean), 1e-3)


@pytest.mark.parametrize("size", [1e-17, 1.0])
def test_elements_that_cancel_exactly_are_not_zero(size):
    x = np.full(SHAPE, size, np.float32)
    x[:, ::2] *= -1
    assert_are_the_definition(x, 1e-4)


@pytest.mark.parametrize("value", [1.0, -0.1, 1e-18, 1e15])
def test_a_single_element_has_its_magnitude(value):
    for got in measured(np.full((1, 1), value, np.float32)).values():
        np.testing.assert_allclose(got, abs(value), rtol=1e-6)


def test_zeros_and_nan():
    assert not np.any([*measured(np.zeros(SHAPE, np.float32)).values()])
    assert np.isnan([*measured(normal() + np.float32(np.nan)).values()]).all()


# --- Several leaves, several layers ---


@pytest.mark.parametrize(
    "dtypes",
    [("float32",) * 3, ("bfloat16", "float32"), ("float16", "complex64", "float32")],
)
def test_leaves_are_pooled(dtypes):
    leaves = [
        random_layer(5, 2 + i, seed=i, dtype=dtype)["kernel"] + i
        for i, dtype in enumerate(dtypes)
    ]
    assert_are_the_definition(leaves)
    assert {x.dtype for x in measured(leaves).values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("statistic", ["std", "rms"])
def test_slices_are_layers_of_their_own(statistic, axis):
    powers = np.logspace(-16, 14, 6)
    powers[0] = 0
    x = normal(shape=(5, 4, 6)) * powers
    x = np.moveaxis(x, -1, axis).astype(np.float32)
    expected = [scale(part, statistic) for part in np.moveaxis(x, axis, 0)]
    scales = functools.partial(sg.layer_scales, statistic=statistic, stack_axis=axis)
    np.testing.assert_allclose(jax.jit(scales)(x)["."], expected, rtol=1e-5)


# --- Derivatives ---


derivatives = jax.jit(jax.jacrev(measures))


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_derivative_is_that_of_the_formula(size):
    """dσ/dx = (x - m) / (N σ), or x / (N rms)."""
    x = normal(size, mean=0.3)
    for name, got in derivatives(x).items():
        statistic = STATISTIC[name]
        centred = wide(x) - (wide(x).mean() if statistic == "std" else 0)
        expected = centred / (x.size * scale(x, statistic))
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("shape", [(1, 1), (4, 3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_derivative_is_finite_where_the_std_is_zero(shape, dtype):
    for value in (0.0, 2.0):
        chex.assert_tree_all_finite(derivatives(jnp.full(shape, value, dtype)))


def test_second_derivative_and_vmap():
    def layer_std(x):
        return measures(x)["layer_std"]

    x = normal(shape=(3, 4, 5))
    for transform in (jax.vmap, lambda f: jax.vmap(jax.hessian(f))):
        got, expected = (jax.jit(transform(f))(x) for f in (layer_std, jnp.std))
        np.testing.assert_allclose(got, expected, atol=1e-5)
