"""Initialisers against the exact mathematics, and what they do to deep networks."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, special

from stablegrad_optax import initializers

KEY = jax.random.key(0)


def gaussian_mean_square(f, variance=1.0):
    """E[f(√variance z)²], by adaptive quadrature in float64."""

    def integrand(z):
        return f(math.sqrt(variance) * z) ** 2 * math.exp(-z * z / 2)

    # Split at zero, where some activations have their kink.
    halves = [
        integrate.quad(integrand, *limits, limit=200, epsabs=1e-11)[0]
        for limits in [(-10, 0), (0, 10)]
    ]
    return sum(halves) / math.sqrt(2 * math.pi)


def exact_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def identity(x):
    return x


# JAX's activation; the same and its derivative in Python floats.
ACTIVATIONS = {
    "tanh": (jnp.tanh, math.tanh, lambda x: 1 / math.cosh(x) ** 2),
    "gelu": (
        exact_gelu,
        lambda x: x * special.ndtr(x),
        lambda x: special.ndtr(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    ),
    "silu": (
        jax.nn.silu,
        lambda x: x * special.expit(x),
        lambda x: special.expit(x) * (1 + x * special.expit(-x)),
    ),
    "sin": (jnp.sin, math.sin, math.cos),
    "cos": (jnp.cos, math.cos, lambda x: -math.sin(x)),
    "relu6": (jax.nn.relu6, lambda x: min(max(x, 0), 6), lambda x: float(0 < x < 6)),
    "elu": (
        jax.nn.elu,
        lambda x: x if x > 0 else math.expm1(x),
        lambda x: 1.0 if x > 0 else math.exp(x),
    ),
    "hard_tanh": (
        jax.nn.hard_tanh,
        lambda x: min(max(x, -1), 1),
        lambda x: float(abs(x) < 1),
    ),
}


def squared_gain(init):
    """σ_w², exactly: weights are those of unit variance times σ_w for the same key."""
    unit = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
    one, other = (np.asarray(f(KEY, (16, 16)), np.float64) for f in (unit, init))
    gain = np.vdot(one, other) / np.vdot(one, one)
    np.testing.assert_allclose(other, gain * one, rtol=1e-5)
    return gain**2


def variance_preserving_gain(activation):
    return squared_gain(
        initializers.variance_preserving(activation, distribution="uniform")
    )


def critical_gain(activation, bias_variance=0.0):
    return squared_gain(
        initializers.critical(activation, bias_variance, distribution="uniform")
    )


# --- Gains ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (jax.nn.relu, 2.0),
        (identity, 1.0),
        (jnp.abs, 1.0),
        (lambda x: jax.nn.leaky_relu(x, 0.2), 2 / (1 + 0.2**2)),
        (jnp.sin, 2 / (1 - math.exp(-2))),
        (jnp.square, 1 / 3),
    ],
    ids=["relu", "identity", "abs", "leaky_relu", "sin", "square"],
)
def test_variance_preserving_in_closed_form(activation, expected):
    np.testing.assert_allclose(
        variance_preserving_gain(activation), expected, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["tanh", "gelu", "silu", "sin", "relu6", "elu"])
def test_variance_preserving_keeps_the_second_moment(name):
    activation, exact, _ = ACTIVATIONS[name]
    kept = gaussian_mean_square(exact) * variance_preserving_gain(activation)
    np.testing.assert_allclose(kept, 1.0, rtol=2e-5)


@given(st.floats(1e-3, 1e3))
def test_a_factor_on_the_activation_is_undone(factor):
    gain = variance_preserving_gain(lambda x: factor * jnp.tanh(x))
    np.testing.assert_allclose(
        gain * factor**2, variance_preserving_gain(jnp.tanh), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (jnp.tanh, 1.0),
        (jnp.sin, 1.0),
        (identity, 1.0),
        (jax.nn.relu, 2.0),
        (exact_gelu, 4.0),  # 1 / φ'(0)²
        (jax.nn.silu, 4.0),
    ],
    ids=["tanh", "sin", "identity", "relu", "gelu", "silu"],
)
def test_critical_without_bias_is_at_zero(activation, expected):
    np.testing.assert_allclose(critical_gain(activation), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "bias_variance"),
    [
        ("tanh", 0.05),
        ("tanh", 0.2),
        ("hard_tanh", 0.05),
        ("sin", 0.2),
        ("sin", 1.0),
        ("cos", 0.0),
        ("gelu", 0.05),
        ("silu", 0.05),
    ],
)
def test_critical_solves_both_equations(name, bias_variance):
    activation, exact, slope = ACTIVATIONS[name]
    gain = critical_gain(activation, bias_variance)

    def residual(q):
        ratio = gaussian_mean_square(exact, q) / gaussian_mean_square(slope, q)
        return ratio + bias_variance - q

    # The smallest fixed point: the residual is positive below it.
    candidates = np.geomspace(1e-3, 30, 40)
    above = next(q for q in candidates if residual(q) <= 0)
    q = optimize.brentq(residual, 1e-3, above, xtol=1e-9)
    chi = gain * gaussian_mean_square(slope, q)
    kept = gain * gaussian_mean_square(exact, q) + bias_variance
    # Gauss-Hermite sums converge slowly over the jump of a slope.
    rtol = 0.04 if name == "hard_tanh" else 1e-3
    np.testing.assert_allclose(chi, 1.0, rtol=rtol)
    np.testing.assert_allclose(kept, q, rtol=rtol)


@pytest.mark.parametrize("bias_variance", [0.0, 0.05, 0.5])
def test_critical_in_closed_form(bias_variance):
    # E[sin²(√q z)] = (1 - e^(-2q)) / 2 and E[cos²(√q z)] = (1 + e^(-2q)) / 2.
    q = optimize.brentq(
        lambda q: 1 / math.tanh(q) + bias_variance - q, 0.1, 10, xtol=1e-12
    )
    expected = 2 / (1 - math.exp(-2 * q))
    np.testing.assert_allclose(
        critical_gain(jnp.cos, bias_variance), expected, rtol=1e-5
    )


def test_critical_of_an_activation_that_grows_fast():
    # exp is its own derivative: q = 1 + bias_variance and σ_w² = e^(-2q).
    np.testing.assert_allclose(critical_gain(jnp.exp), math.exp(-2), rtol=1e-4)


# --- Deep networks --------------------------------------------------------------------


def forward(init, activation, width, depth, x, bias_variance=0.0):
    """Pre-activations of a random network, from those of its first layer."""

    def layer(x, key):
        weight_key, bias_key = jax.random.split(key)
        bias = math.sqrt(bias_variance) * jax.random.normal(bias_key, (width,))
        return activation(x) @ init(weight_key, (width, width)) + bias, None

    return jax.lax.scan(layer, x, jax.random.split(KEY, depth))[0]


@pytest.mark.parametrize(
    ("activation", "factor"),
    [
        (jnp.tanh, 1.1),
        # Nothing pulls the size back after a chance deviation; LeCun's gain: 1e-6.
        (jax.nn.relu, 2.5),
    ],
    ids=["tanh", "relu"],
)
def test_second_moment_through_twenty_layers(activation, factor):
    init = initializers.variance_preserving(activation)
    x = jax.random.normal(KEY, (64, 512))
    out = forward(init, activation, 512, 20, x)
    assert 1 / factor < jnp.mean(out**2) < factor


def derivative_growth(init, activation, variance, bias_variance=0.0):
    """Mean square of the derivatives along a direction, after over before 30 layers."""
    width, depth = 512, 30
    x = math.sqrt(variance) * jax.random.normal(KEY, (16, width))
    direction = jax.random.normal(jax.random.fold_in(KEY, 7), x.shape)

    @jax.jit
    def push(x, direction):
        return jax.jvp(
            lambda x: forward(init, activation, width, depth, x, bias_variance),
            (x,),
            (direction,),
        )[1]

    return float(jnp.mean(push(x, direction) ** 2) / jnp.mean(direction**2))


def test_critical_keeps_input_derivatives():
    # Of small inputs: q = 0 is where tanh is critical.
    growth = derivative_growth(initializers.critical(jnp.tanh), jnp.tanh, 1e-4)
    assert 0.6 < growth < 1.6


def test_critical_keeps_input_derivatives_with_biases():
    # sin has its fixed point q = tanh(q) + bias_variance in closed form.
    variance = optimize.brentq(lambda q: math.tanh(q) + 0.2 - q, 0.1, 5)
    init = initializers.critical(jnp.sin, 0.2)
    growth = derivative_growth(init, jnp.sin, variance, bias_variance=0.2)
    assert 0.5 < growth < 2.0


def test_variance_preserving_lets_derivatives_of_tanh_grow():
    # The contrast that the documentation draws: (σ_w² E[φ'²])^30 = 1.18^30.
    init = initializers.variance_preserving(jnp.tanh)
    assert derivative_growth(init, jnp.tanh, 1.0) > 20


# --- Conventions of jax.nn.initializers -----------------------------------------------

INITIALIZERS = [initializers.variance_preserving, initializers.critical]
both = pytest.mark.parametrize("factory", INITIALIZERS, ids=lambda f: f.__name__)


@both
@pytest.mark.parametrize(
    ("shape", "axes", "fan_in"),
    [
        ((300, 200), {}, 300),
        ((3, 3, 64, 96), {}, 576),  # a convolution: the window counts
        ((200, 300), {"in_axis": 1, "out_axis": 0}, 300),
        ((8, 100, 90), {"batch_axis": 0}, 100),
        ((100, 90, 8), {"in_axis": 0, "out_axis": 1, "batch_axis": (2,)}, 100),
        ((10, 20, 300), {"in_axis": (0, 1)}, 200),
    ],
    ids=["dense", "conv", "transposed", "stacked", "stacked last", "two inputs"],
)
def test_fan_in(factory, shape, axes, fan_in):
    weights = factory(jax.nn.relu, **axes)(KEY, shape)
    chex.assert_shape(weights, shape)
    np.testing.assert_allclose(fan_in * np.var(weights), 2.0, rtol=0.03)
    assert abs(np.mean(weights)) < 5 * np.std(weights) / math.sqrt(weights.size)


@both
@pytest.mark.parametrize(
    ("distribution", "largest"),
    [
        ("uniform", math.sqrt(3)),
        ("truncated_normal", 2 / 0.87962566),  # cut at two, then widened to unit std
        ("normal", None),
    ],
)
def test_distribution(factory, distribution, largest):
    init = factory(identity, distribution=distribution)
    weights = math.sqrt(256) * init(KEY, (256, 256))
    np.testing.assert_allclose(np.var(weights), 1.0, rtol=0.03)
    extreme = np.max(np.abs(weights))
    if largest is None:
        assert extreme > 3.5
    else:
        np.testing.assert_allclose(extreme, largest, rtol=1e-3)


@both
def test_the_default_is_a_truncated_normal(factory):
    truncated = factory(jnp.tanh, distribution="truncated_normal")
    chex.assert_trees_all_equal(factory(jnp.tanh)(KEY, (8, 8)), truncated(KEY, (8, 8)))


@both
def test_dtype(factory):
    shape = (256, 256)
    assert factory(jax.nn.relu)(KEY, shape).dtype == jnp.float32
    half = factory(jax.nn.relu, dtype=jnp.bfloat16)
    weights = half(KEY, shape)
    assert weights.dtype == jnp.bfloat16
    variance = 256 * np.var(np.asarray(weights, np.float64))
    np.testing.assert_allclose(variance, 2.0, rtol=0.03)
    assert half(KEY, shape, jnp.float32).dtype == jnp.float32


traceable = pytest.mark.parametrize(
    "activation", [jnp.tanh, jax.nn.relu, jax.nn.silu], ids=["tanh", "relu", "silu"]
)


@both
@traceable
def test_built_in_jit(factory, activation):
    def weights(key):
        return factory(activation)(key, (8, 4))

    chex.assert_trees_all_close(jax.jit(weights)(KEY), weights(KEY), rtol=1e-6)


@both
@traceable
def test_built_in_vmap(factory, activation):
    def weights(key):
        return factory(activation)(key, (8, 4))

    keys = jax.random.split(KEY, 3)
    expected = jnp.stack([weights(key) for key in keys])
    chex.assert_trees_all_close(jax.vmap(weights)(keys), expected, rtol=1e-6)


@both
@traceable
def test_built_in_grad(factory, activation):
    def total(scale):
        return jnp.sum(scale * factory(activation)(KEY, (8, 4)))

    np.testing.assert_allclose(jax.grad(total)(2.0), total(1.0), rtol=1e-5)


# --- Errors ---------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "activation",
    [jnp.sum, lambda x: x[::2], lambda x: jnp.stack([x, x])],
    ids=["sum", "shorter", "more axes"],
)
def test_activation_must_be_elementwise(factory, activation):
    with pytest.raises(ValueError, match="elementwise"):
        factory(activation)


@both
@pytest.mark.parametrize(
    "activation", [jnp.zeros_like, lambda x: x * jnp.nan], ids=["zero", "NaN"]
)
def test_activation_without_a_moment(factory, activation):
    with pytest.raises(ValueError, match="must be positive"):
        factory(activation)


def test_a_constant_has_no_slope():
    with pytest.raises(ValueError, match="slope must be positive"):
        initializers.critical(jnp.ones_like)


def test_negative_bias_variance():
    with pytest.raises(ValueError, match=r"not be negative, got -0\.1"):
        initializers.critical(jnp.tanh, -0.1)


@pytest.mark.parametrize(
    "activation", [jax.nn.relu, identity], ids=["relu", "identity"]
)
def test_no_fixed_point(activation):
    # q = q + bias_variance has no solution.
    with pytest.raises(ValueError, match=r"no fixed point.*bias_variance=0\.1"):
        initializers.critical(activation, 0.1)
