"""Initialisers against the exact mathematics, and what they do to deep networks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from stablegrad_optax import initializers

KEY = jax.random.key(0)


def gaussian_mean_square(f, variance):
    """E[f(√variance z)²], in float64 on a fine grid."""
    z = np.linspace(-10, 10, 10_001)
    values = np.asarray(f(jnp.asarray(math.sqrt(variance) * z)), np.float64)
    density = np.exp(-z * z / 2)
    return density @ values**2 / density.sum()


def exact_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def identity(x):
    return x


def squared_gain(factory, *args):
    """σ_w², exactly: weights are those of unit variance times σ_w for the same key."""
    unit = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
    init = factory(*args, distribution="uniform")
    one, other = (np.asarray(f(KEY, (16, 16)), np.float64) for f in (unit, init))
    gain = np.vdot(one, other) / np.vdot(one, one)
    np.testing.assert_allclose(other, gain * one, rtol=1e-5)
    return gain**2


# --- Gains ---


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (jax.nn.relu, 2.0),
        (identity, 1.0),
        (jnp.abs, 1.0),
        (lambda x: jax.nn.leaky_relu(x, 0.2), 2 / (1 + 0.2**2)),
        (jnp.sin, 2 / (1 - math.exp(-2))),
        (jnp.square, 1 / 3),
        (lambda x: 1e3 * jnp.square(x), 1 / 3e6),
    ],
)
def test_variance_preserving_in_closed_form(activation, expected):
    gain = squared_gain(initializers.variance_preserving, activation)
    np.testing.assert_allclose(gain, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (jnp.tanh, 1.0),
        (jnp.sin, 1.0),
        (identity, 1.0),
        (jax.nn.relu, 2.0),
        (exact_gelu, 4.0),  # 1 / φ'(0)²
        # exp is its own derivative: q = 1 and σ_w² = e^(-2q).
        (jnp.exp, math.exp(-2)),
    ],
)
def test_critical_in_closed_form(activation, expected):
    gain = squared_gain(initializers.critical, activation)
    np.testing.assert_allclose(gain, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("activation", "bias_variance"),
    [
        (jnp.tanh, 0.05),
        (jnp.tanh, 0.2),
        (jax.nn.hard_tanh, 0.05),
        (jnp.sin, 1.0),
        (jnp.cos, 0.0),
        (jnp.cos, 0.5),
        (exact_gelu, 0.05),
    ],
)
def test_critical_solves_both_equations(activation, bias_variance):
    gain = squared_gain(initializers.critical, activation, bias_variance)
    slope = jax.jit(jax.vmap(jax.grad(activation)))

    def residual(q):
        squares = gaussian_mean_square(activation, q), gaussian_mean_square(slope, q)
        return squares[0] / squares[1] + bias_variance - q

    # The smallest fixed point: the residual is positive below it.
    above = next(q for q in np.geomspace(1e-3, 30, 40) if residual(q) <= 0)
    q = optimize.brentq(residual, 1e-3, above, xtol=1e-6)
    chi = gain * gaussian_mean_square(slope, q)
    kept = gain * gaussian_mean_square(activation, q) + bias_variance
    # The grid may have a point more or less on one side of the jump of a slope.
    rtol = 0.01 if activation is jax.nn.hard_tanh else 1e-4
    np.testing.assert_allclose([chi, kept], [1.0, q], rtol=rtol)


# --- Deep networks ---


@pytest.mark.parametrize(
    ("factory", "variance", "low", "high"),
    [
        # Of small inputs: q = 0 is where tanh is critical.
        (initializers.critical, 1e-4, 0.6, 1.6),
        # The contrast that the documentation draws: (σ_w² E[φ'²])^30 = 1.18^30.
        (initializers.variance_preserving, 1.0, 20.0, 1e3),
    ],
)
def test_input_derivatives_of_tanh_through_thirty_layers(factory, variance, low, high):
    width, init = 256, factory(jnp.tanh)

    def network(x):
        def layer(x, key):
            return jnp.tanh(x) @ init(key, (width, width)), None

        return jax.lax.scan(layer, x, jax.random.split(KEY, 30))[0]

    x, direction = jax.random.normal(KEY, (2, 16, width))
    _, pushed = jax.jit(lambda x, v: jax.jvp(network, (x,), (v,)))(
        math.sqrt(variance) * x, direction
    )
    assert low < jnp.mean(pushed**2) / jnp.mean(direction**2) < high


# --- Conventions of jax.nn.initializers ---

FACTORIES = [initializers.variance_preserving, initializers.critical]
both = pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)


@both
@pytest.mark.parametrize(
    ("shape", "options", "fan_in"),
    [
        ((300, 200), {}, 300),
        ((300, 200), {"distribution": "normal"}, 300),
        ((300, 200), {"dtype": jnp.bfloat16}, 300),
        ((3, 3, 64, 96), {}, 576),  # a convolution: the window counts
        ((200, 300), {"in_axis": 1, "out_axis": 0}, 300),
        ((100, 90, 8), {"in_axis": 0, "out_axis": 1, "batch_axis": (2,)}, 100),
        ((10, 20, 300), {"in_axis": (0, 1)}, 200),
    ],
)
def test_options_are_those_of_jax(factory, shape, options, fan_in):
    weights = factory(jax.nn.relu, **options)(KEY, shape)
    assert weights.shape == shape
    assert weights.dtype == options.get("dtype", jnp.float32)
    weights = np.asarray(weights, np.float64) * math.sqrt(fan_in / 2)
    np.testing.assert_allclose(np.var(weights), 1, rtol=0.03)
    # By default a normal distribution that is cut at two, then widened to unit std.
    is_cut = np.abs(weights).max() < 2.01 / 0.87962566
    assert is_cut == (options.get("distribution") != "normal")


@both
@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
def test_built_while_tracing(factory, transform):
    def weights(x):
        return x * factory(jax.nn.silu)(KEY, (8, 4))

    expected = weights(1.0)
    if transform is jax.grad:
        got = jax.grad(lambda x: jnp.vdot(expected, weights(x)))(1.0)
        np.testing.assert_allclose(got, jnp.vdot(expected, expected), rtol=1e-5)
    else:
        got = transform(weights)(jnp.ones(1))
        np.testing.assert_allclose(jnp.squeeze(got), expected, rtol=1e-6)


# --- Errors ---


@both
@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (jnp.sum, "elementwise"),
        (lambda x: x[::2], "elementwise"),
        (lambda x: jnp.stack([x, x]), "elementwise"),
        (jnp.zeros_like, "must be positive"),
        (lambda x: x * jnp.nan, "must be positive"),
    ],
)
def test_bad_activations(factory, activation, message):
    with pytest.raises(ValueError, match=message):
        factory(activation)


@pytest.mark.parametrize(
    ("activation", "bias_variance", "message"),
    [
        (jnp.ones_like, 0.0, "slope must be positive"),
        (jnp.tanh, -0.1, r"not be negative, got -0\.1"),
        # q = q + bias_variance has no solution.
        (jax.nn.relu, 0.1, r"no fixed point.*bias_variance=0\.1 for relu"),
        (identity, 0.1, r"no fixed point.*bias_variance=0\.1 for identity"),
    ],
)
def test_no_critical_variance(activation, bias_variance, message):
    with pytest.raises(ValueError, match=message):
        initializers.critical(activation, bias_variance)
