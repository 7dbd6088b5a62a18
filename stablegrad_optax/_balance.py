"""The gradients of the terms of a loss, summed on one scale.

The rule remembers one number for each term, the running mean square of its scale. It is
arithmetic on vectors over the K terms: only the scales and the sum look at gradients.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from stablegrad_optax import _checks, _layers, _scale, _terms

# A scale counts at most so many times the memory: rare large values must not rule it.
_LARGEST_GROWTH = 1.2
# A term pulls at most so many times as hard as its share.
_LARGEST_PULL = 3.0

ScalarOrSchedule = ArrayLike | Callable[[jax.Array], ArrayLike]


class BalanceTermsState(NamedTuple):
    """What :func:`balance_terms` keeps: three dicts of scalars, by the term's name."""

    counts: dict[str, jax.Array]  #: steps at which its scale was positive and finite
    mean_squares: dict[str, jax.Array]  #: running mean of its squared scale
    weights: dict[str, jax.Array]  #: by what the last update multiplied its gradient


def balance_terms(
    terms: Sequence[str],
    weights: Mapping[str, ScalarOrSchedule] | None = None,
    *,
    decay: ArrayLike = 0.99,
    power: ArrayLike = 0.5,
    strength: ScalarOrSchedule = 1.0,
    axis_name: _scale.AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Sums the gradients of the terms of a loss, each brought to the same scale.

    With :math:`s_k` the rms of the gradient :math:`g_k` over the whole tree,
    :math:`L_k` the value of the term and :math:`w_k` its importance:

    .. math::

        \begin{aligned}
        x_k &= \min(s_k, 1.2\,\hat s_k) \\
        m_k &\leftarrow \beta m_k + (1 - \beta) x_k^2, \qquad
            \hat s_k = \sqrt{m_k / (1 - \beta^{t_k})} \\
        c_k &= \frac{s_k}{\max(\hat s_k, s_k / 3)}
            \left(\frac{D_k}{\max_j D_j}\right)^p, \qquad D_k = L_k / s_k \\
        a_k &= \frac{w_k}{s_k} \, c_k^{\,\rho} \\
        \hat g &= \sum_k a_k g_k
        \end{aligned}

    A gradient is divided by a running mean :math:`\hat s_k` of its scale, in which
    :math:`t_k` steps count: slow, so that a term that is satisfied pulls less and less,
    and clipped, so that rare large values do not rule it. :math:`D_k`, the length of a
    Polyak step, says how far a term is from being satisfied; the farther, the harder it
    pulls. Otherwise every point at which two terms pull in opposite directions would be
    stationary. Both keep a network from a simple wrong solution, and cost accuracy near
    the right one: if you know the number of steps, let :math:`\rho` go from 1 to 0 over
    them, ``strength=optax.linear_schedule(1.0, 0.0, steps)``.

    A factor in front of a term of the loss changes nothing. The result does not become
    small when the terms do: let the learning rate decay. Wrappers that keep a gradient
    between steps, as ``optax.MultiSteps`` and ``optax.apply_if_finite``, go behind it
    in a chain.

    Args:
      terms: the K names of the terms.
      weights: :math:`w_k`, ``{name: importance}``, not negative; 1 for missing names.
        A schedule is called with the number of steps that have counted so far, and
        clipped at zero.
      decay: :math:`\beta`, from 0 to less than 1.
      power: :math:`p`, not negative. More than 0 needs losses that are not negative and
        whose best value is zero, such as mean squares; else take 0.
      strength: :math:`\rho`, from 0, where all scales are equal at every step, to 1. A
        schedule is called as those of ``weights``, and clipped at 0 and 1.
      axis_name: as for :func:`term_scales`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. Its ``update(grads, state,
      params=None, *, values=None, **extra_args)`` takes ``{name: gradient}`` and
      ``{name: loss}`` from :func:`value_and_grad_of_terms`, and returns one gradient
      and a :class:`BalanceTermsState`. Leaves that are not floating-point numbers are
      those of the first term.

    Raises:
      ValueError: at construction if ``terms`` are not distinct names, or ``weights``,
        ``decay``, ``power`` or ``strength`` out of range; from ``update`` if ``grads``
        or ``values`` have other names, or there are no ``values`` and ``power`` is not
        0.

    A term whose gradient is zero adds nothing. A NaN or Inf in a gradient makes the
    step not finite and leaves the memory of its term as it was. A negative value makes
    the step NaN, unless ``power`` is 0.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import stablegrad_optax as sg
      >>> def losses(w):
      ...     return {
      ...         "residual": 1024 * (w[0] + w[1]) ** 2,
      ...         "boundary": (w[0] - w[1]) ** 2 / 1024,
      ...     }
      >>> tx = optax.chain(sg.balance_terms(("residual", "boundary")), optax.sgd(0.25))
      >>> params = jnp.array([2.5, 1.5])
      >>> state = tx.init(params)
      >>> values, grads = sg.value_and_grad_of_terms(losses)(params)
      >>> updates, state = tx.update(grads, state, params, values=values)
      >>> print([f"{x:.4g}" for x in optax.apply_updates(params, updates)])
      ['2.125', '1.375']
      >>> print({name: f"{w:.3g}" for name, w in state[0].weights.items()})
      {'residual': '0.000122', 'boundary': '256'}

    References:
      The rule is this library's. Closest: Deguchi and Asai, `Dynamic & norm-based
      weights to normalize imbalance in back-propagated gradients of physics-informed
      neural networks <https://doi.org/10.1088/2399-6528/ace416>`_, 2023
    """
    names = tuple(terms)
    if isinstance(terms, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"terms must be one or more different names, got {terms!r}.")
    for name, weight in (weights or {}).items():
        if name not in names:
            raise ValueError(f"weights has {name!r}, which is not a term of {names}.")
        if not callable(weight):
            _checks.check_scalar(f"the weight of {name!r}", weight, "not be negative")
    importances = dict.fromkeys(names, 1.0) | dict(weights or {})
    _checks.check_scalar("decay", decay, "be from 0 to less than 1")
    _checks.check_scalar("power", power, "not be negative")
    if not callable(strength):
        _checks.check_scalar("strength", strength, "be from 0 to 1")
    needs_values = isinstance(power, jax.core.Tracer) or power != 0

    def init_fn(params):
        del params
        return BalanceTermsState(
            counts={name: jnp.zeros((), jnp.int32) for name in names},
            mean_squares={name: jnp.zeros((), float) for name in names},
            weights={name: jnp.zeros((), float) for name in names},
        )

    def update_fn(grads, state, params=None, *, values=None, **extra_args):
        del params, extra_args
        _check_names("grads", grads, names)
        dtype = state.mean_squares[names[0]].dtype

        def vector(of_terms):
            return jnp.stack([jnp.asarray(of_terms[n]).astype(dtype) for n in names])

        counts = jnp.stack([state.counts[name] for name in names])
        step = jnp.max(counts)
        w = vector({n: w(step) if callable(w) else w for n, w in importances.items()})
        rho = strength(step) if callable(strength) else strength
        rho = jnp.clip(_scale.real(rho, dtype), 0, 1)
        scales = vector(_terms.term_scales(dict(grads), axis_name=axis_name))
        counts, mean_squares, averages = _remember(
            scales, counts, vector(state.mean_squares), _scale.real(decay, dtype)
        )
        if needs_values:
            if values is None:
                raise ValueError(
                    "balance_terms needs the values of the terms: call "
                    "update(..., values=values), or choose power=0."
                )
            _check_names("values", values, names)
            for name in names:
                if shape := np.shape(values[name]):
                    raise ValueError(
                        f"the value of {name!r} must be a scalar, got shape {shape}."
                    )
            w *= _pull(vector(values), scales, rho * _scale.real(power, dtype))
        divisors = jnp.maximum(averages, scales / _LARGEST_PULL)
        divisors = divisors**rho * scales ** (1 - rho)
        factors = _scale.gain(divisors, w, of_zero=0.0)
        weighted_sum = functools.partial(_weighted_sum, list(factors))
        total = jax.tree.map(weighted_sum, *[grads[name] for name in names])
        vectors = counts, mean_squares, factors
        dicts = [dict(zip(names, vector, strict=True)) for vector in vectors]
        return total, BalanceTermsState(*dicts)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _remember(
    scales: jax.Array, counts: jax.Array, mean_squares: jax.Array, decay: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """t, m and ŝ, each a vector over the terms, after this step."""

    def averages():
        corrections = 1 - decay ** counts.astype(decay.dtype)
        squares = mean_squares / jnp.where(counts == 0, 1, corrections)
        return _where_not_zero(jnp.sqrt, squares)

    clipped = jnp.minimum(scales, _LARGEST_GROWTH * averages())
    squares = (1 - decay) * jnp.where(counts == 0, scales, clipped) ** 2
    is_counted = jnp.isfinite(scales) & (squares > 0)
    mean_squares = jnp.where(is_counted, decay * mean_squares + squares, mean_squares)
    counts = jnp.where(is_counted, optax.safe_increment(counts), counts)
    return counts, mean_squares, averages()


def _pull(values: jax.Array, scales: jax.Array, power: jax.Array) -> jax.Array:
    """(D / max D)^p with D = L / s, and D = 0 where s is 0."""
    # NaN for all powers, and not for those alone that have no value there.
    values = jnp.where(values < 0, jnp.nan, values)
    distances = values * _where_not_zero(jnp.reciprocal, scales)
    distances = jnp.minimum(distances, jnp.finfo(values.dtype).max)
    largest = jnp.max(distances)
    ratios = distances * _where_not_zero(jnp.reciprocal, largest)
    powers = _where_not_zero(lambda x: x**power, jnp.where(largest == 0, 1, ratios))
    return jnp.where(power == 0, 1, powers)


def _where_not_zero(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """f(x), and 0 where x is 0, with a finite derivative there."""
    return jnp.where(x == 0, 0, f(jnp.where(x == 0, 1, x)))


def _weighted_sum(factors: Sequence[jax.Array], *leaves: Any) -> Any:
    """Σ a_k g_k in the dtype of the leaves; a finite sum stays finite."""
    if not _layers.is_inexact(leaves[0]):
        return leaves[0]

    def weighted_sum(*parts):
        terms = _scale.in_accumulation_dtype(parts)
        dtype, wide = parts[0].dtype, terms[0].dtype
        products = [a.astype(wide) * x for a, x in zip(factors, terms, strict=True)]
        total = functools.reduce(lax.add, products)
        if _scale.is_narrow(dtype, wide):
            total = _scale.clip_to(dtype, total)
        return total.astype(dtype)

    return _scale.on_real_parts(weighted_sum, *map(jnp.asarray, leaves))


def _check_names(what: str, of_terms: Any, names: Sequence[str]) -> None:
    found = tuple(of_terms) if isinstance(of_terms, Mapping) else type(of_terms)
    if not isinstance(found, tuple) or set(found) != set(names):
        raise ValueError(f"{what} must be a dict of the terms {names}, got {found}.")
