r"""Activation-aware initialisers, so that the forward pass starts well scaled.

They choose the variance of the weights, :math:`\sigma_w^2 / \text{fan-in}`, from the
activation :math:`\varphi`, which may be any: expectations are sums over a fine grid.
:func:`variance_preserving` keeps the size of activations with depth; :func:`critical`
keeps that of derivatives, and is the one for PINNs, whose loss holds derivatives of the
network with respect to its inputs.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Activation = Callable[[jax.Array], jax.Array]

# The normal distribution on a grid; no point is at 0, where activations have kinks.
_POINTS = np.linspace(-10, 10, 1000)
_WEIGHTS = np.exp(-(_POINTS**2) / 2) / np.sum(np.exp(-(_POINTS**2) / 2))


def variance_preserving(
    activation: Activation, **options: Any
) -> jax.nn.initializers.Initializer:
    r"""Keeps the second moment of activations at one through a layer.

    .. math:: \sigma_w^2 = 1 / E[\varphi(z)^2], \qquad z \sim N(0, 1)

    For ReLU this is He initialisation (2), for the identity LeCun's (1). With GELU and
    SiLU small deviations from one grow over many layers; with tanh derivatives do.

    Args:
      activation: an elementwise JAX function.
      **options: ``distribution`` (default ``"truncated_normal"``), ``in_axis``,
        ``out_axis``, ``batch_axis`` and ``dtype`` as for
        ``jax.nn.initializers.variance_scaling``.

    Returns:
      An initialiser ``(key, shape, dtype=dtype) -> array``.

    Raises:
      ValueError: if the activation is not elementwise, or its second moment not finite
        and positive.

    Example:
      >>> import jax
      >>> init = variance_preserving(jax.nn.relu)
      >>> weights = init(jax.random.key(0), (1000, 500))
      >>> print(f"{1000 * weights.var():.2f}")
      2.00

    References:
      He et al., `Delving Deep into Rectifiers
      <https://arxiv.org/abs/1502.01852>`_, 2015
    """
    return _fan_in(1 / _positive_moment("activation", activation, 1.0), options)


def critical(
    activation: Activation, bias_variance: float = 0.0, **options: Any
) -> jax.nn.initializers.Initializer:
    r"""Keeps the size of derivatives through a layer, at the edge of chaos.

    Solves for the variance :math:`\sigma_w^2` of the weights and the variance :math:`q`
    of the pre-activations, with :math:`\sigma_b^2` the given variance of the biases:

    .. math::

        \begin{gathered}
        \chi = \sigma_w^2 E[\varphi'(\sqrt q z)^2] = 1 \\
        q = \sigma_w^2 E[\varphi(\sqrt q z)^2] + \sigma_b^2
        \end{gathered}

    For tanh without bias variance :math:`\sigma_w^2 = 1`, at :math:`q = 0`; for ReLU 2.
    Where there are several fixed points, the smallest :math:`q` is taken.

    Args:
      activation: an elementwise, differentiable JAX function.
      bias_variance: :math:`\sigma_b^2`; initialise the biases with
        ``jax.nn.initializers.normal(bias_variance ** 0.5)`` to match.
      **options: as for :func:`variance_preserving`.

    Returns:
      An initialiser ``(key, shape, dtype=dtype) -> array``.

    Raises:
      ValueError: as :func:`variance_preserving`; if ``bias_variance`` is negative, or
        there is no such fixed point, as for ReLU with a positive bias variance.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> init = critical(jnp.tanh)
      >>> weights = init(jax.random.key(0), (1000, 500))
      >>> print(f"{1000 * weights.var():.2f}")
      1.00

    References:
      Schoenholz et al., `Deep Information Propagation
      <https://arxiv.org/abs/1611.01232>`_, 2016
    """
    if bias_variance < 0:
        raise ValueError(f"bias_variance must not be negative, got {bias_variance}.")
    slope = jax.vmap(jax.grad(activation))
    variance = _fixed_point(activation, slope, float(bias_variance))
    return _fan_in(1 / _positive_moment("slope", slope, variance), options)


def _fan_in(scale: float, options: dict[str, Any]) -> jax.nn.initializers.Initializer:
    options = {"distribution": "truncated_normal"} | options
    return jax.nn.initializers.variance_scaling(scale, "fan_in", **options)


def _fixed_point(
    activation: Activation, slope: Activation, bias_variance: float
) -> float:
    """The smallest q with q = E[φ(√q z)²] / E[φ'(√q z)²] + bias_variance."""

    def excess(variance: float | np.ndarray) -> np.ndarray:
        of_slope = _mean_square(slope, variance)
        with np.errstate(all="ignore"):
            q = _mean_square(activation, variance) / of_slope
        # Infinite where the activation saturates or overflows: no weights would do.
        is_possible = (of_slope > 0) & np.isfinite(q)
        return np.where(is_possible, q + bias_variance - variance, np.inf)

    at_zero = _mean_square(activation, 0.0)
    _positive_moment("slope", slope, 1.0)
    if bias_variance == 0 and at_zero == 0:
        return 1e-8  # for the limit q -> 0: at zero itself may be a kink
    candidates = np.logspace(-4, 4, 161)
    values = excess(candidates)
    (crossings,) = np.nonzero((values[:-1] > 0) & (values[1:] <= 0))
    if not crossings.size:
        raise ValueError(
            f"no fixed point keeps derivatives with bias_variance={bias_variance} for "
            f"{getattr(activation, '__name__', activation)}; try bias_variance=0 or "
            "variance_preserving."
        )
    low, high = candidates[crossings[0] :][:2]
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return low


def _positive_moment(name: str, function: Activation, variance: float) -> float:
    moment = float(_mean_square(function, variance))
    if not 0 < moment < np.inf:
        raise ValueError(f"mean square of the {name} must be positive, got {moment}.")
    return moment


def _mean_square(function: Activation, variance: float | np.ndarray) -> np.ndarray:
    """E[function(√variance z)²], for each variance."""
    points = np.sqrt(variance)[..., None] * _POINTS
    # Tracing is local to a thread, so another one computes numbers also where a module
    # builds its initialiser under vmap; jax.ensure_compile_time_eval does not.
    with ThreadPoolExecutor(1) as thread:
        values = thread.submit(
            lambda: np.asarray(function(jnp.asarray(points.ravel())))
        ).result()
    if values.shape != (points.size,):
        raise ValueError(
            f"the activation must be elementwise; it maps shape {(points.size,)} to "
            f"{values.shape}."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        return values.reshape(points.shape).astype(np.float64) ** 2 @ _WEIGHTS
