"""Methods that make one gradient of those of the terms: ours, variants and peers.

A method is an optax transformation of stacked gradients, a leading axis of K terms on
each leaf, whose update has no such axis. It gets the learning rate's column `weight`
and the index of the `residual` as extra arguments.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import stablegrad_optax as sg
from examples.common.optimizers import Base
from examples.pinn.network import stack_axis

Weights = Callable[..., jax.Array]
"""Maps stacked gradients, `weight` and `residual` to K weights."""


def weighted(weights: Weights) -> optax.GradientTransformationExtraArgs:
    """The sum of the gradients by weights that depend on this step alone."""

    def update_fn(grads, state, params=None, **column):
        del params
        return weighted_sum(weights(grads, **column), grads), state

    return optax.GradientTransformationExtraArgs(
        lambda _: optax.EmptyState(), update_fn
    )


def averaged(
    quantity: Weights,
    decay: float,
    every: int = 1,
    start: float | None = None,
    weights: Callable[[jax.Array], jax.Array] = lambda average: average,
) -> optax.GradientTransformationExtraArgs:
    """The sum by weights that come of a moving average, renewed `every` steps.

    It starts at `start`; or, as Adam's moments do, at zero, corrected for that.
    """

    def init_fn(grads):
        first = jnp.full(_number(grads), start or 0.0)
        return {"average": first, "renewed": jnp.int32(0), "step": jnp.int32(0)}

    def update_fn(grads, state, params=None, **column):
        del params
        is_due = state["step"] % every == 0
        new = decay * state["average"] + (1 - decay) * quantity(grads, **column)
        average = jnp.where(is_due, new, state["average"])
        renewed = state["renewed"] + is_due
        used = average if start else average / (1 - decay**renewed)
        state = {"average": average, "renewed": renewed, "step": state["step"] + 1}
        return weighted_sum(weights(used), grads), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _number(grads: Any) -> int:
    return len(jax.tree.leaves(grads)[0])


def weighted_sum(weights: jax.Array, grads: Any) -> Any:
    return jax.tree.map(lambda g: jnp.einsum("k,k...->...", weights, g), grads)


# --- Weights ---


def fixed(grads: Any, weight: jax.Array, residual: int) -> jax.Array:
    """1 for the residual and `weight` for each condition."""
    return jnp.full(_number(grads), weight).at[residual].set(1.0)


def scales(grads: Any, **column: Any) -> jax.Array:
    """What `sg.balance_terms` divides by."""
    return sg.term_scales(grads)


def with_scale_of_residual(grads: Any, residual: int, **column: Any) -> jax.Array:
    scales = sg.term_scales(grads)
    return scales[residual] / scales


def with_mean_scale(grads: Any, **column: Any) -> jax.Array:
    """All terms at the geometric mean of their scales."""
    scales = sg.term_scales(grads)
    return jnp.exp(jnp.mean(jnp.log(scales))) / scales


def gradient_norms(grads: Any, **column: Any) -> jax.Array:
    """Wang, Sankaran, Wang, Perdikaris 2023 (2308.08468): Σ_j |g_j| / |g_k|."""
    scales = sg.term_scales(grads)
    return jnp.sum(scales) / scales


def annealed(grads: Any, residual: int, **column: Any) -> jax.Array:
    """Wang, Teng, Perdikaris 2021 (2001.04536): max |g_residual| / mean |g_k|."""
    leaves = jax.tree.leaves(grads)
    largest = functools.reduce(
        jnp.maximum, [jnp.max(jnp.abs(g[residual])) for g in leaves]
    )
    sums = sum(jnp.sum(jnp.abs(g), range(1, g.ndim)) for g in leaves)
    means = sums / sum(g[0].size for g in leaves)
    return (largest / means).at[residual].set(1.0)


def config(grads: Any, **column: Any) -> jax.Array:
    """ConFIG, Liu, Chu, Thuerey 2024 (2408.11104), as weights of the gradients.

    The direction g has the same cosine with all of them: with unit vectors u_k and
    their cosines C, g = Σ_k a_k u_k where C a = 1. Its length is Σ_k <g_k, g> / |g|.
    """
    cosines = sg.term_alignment(grads)
    size = sum(g[0].size for g in jax.tree.leaves(grads))
    norms = sg.term_scales(grads) * jnp.sqrt(size)
    solution = jnp.linalg.pinv(cosines, hermitian=True) @ jnp.ones(len(cosines))
    length = jnp.sqrt(solution @ cosines @ solution)
    return solution / norms / length * (norms @ cosines @ solution / length)


# --- Whole methods ---


def balanced(**options: Any) -> optax.GradientTransformationExtraArgs:
    """What the library does."""

    def update_fn(grads, state, params=None, **column):
        return sg.balance_terms(grads, **options), state

    return optax.GradientTransformationExtraArgs(
        lambda _: optax.EmptyState(), update_fn
    )


def balanced_per_layer() -> optax.GradientTransformationExtraArgs:
    """Each term's gradient over the scales of its layers, and not its own."""
    each = sg.stablegrad(statistic="rms", stack_axis=stack_axis)

    def update_fn(grads, state, params=None, **column):
        rescaled = jax.vmap(lambda g: each.update(g, optax.EmptyState())[0])(grads)
        return jax.tree.map(lambda g: jnp.sum(g, axis=0), rescaled), state

    return optax.GradientTransformationExtraArgs(
        lambda _: optax.EmptyState(), update_fn
    )


def multi_adam() -> optax.GradientTransformationExtraArgs:
    """Yao et al. 2023 (2306.02816): the mean of Adam's steps, each for one term."""
    adam = optax.scale_by_adam(b1=0.99, b2=0.99)

    def update_fn(grads, state, params=None, **column):
        steps, state = adam.update(grads, state)
        return jax.tree.map(lambda g: jnp.mean(g, axis=0), steps), state

    return optax.GradientTransformationExtraArgs(adam.init, update_fn)


OURS = {"balanced": balanced()}
FIXED = {"weight": weighted(fixed)}
PEERS = {
    "gradient norms": averaged(gradient_norms, 0.9, every=100, start=1.0),
    "annealing": averaged(annealed, 0.1, every=10, start=1.0),
    "ConFIG": weighted(config),
    "MultiAdam": multi_adam(),
}
VARIANTS = {
    "balanced, scale of the residual": weighted(with_scale_of_residual),
    "balanced, geometric mean": weighted(with_mean_scale),
    "balanced, average 0.9": averaged(scales, 0.9, weights=jnp.reciprocal),
    "balanced, max_ratio 100": balanced(max_ratio=100.0),
    "balanced, max_ratio 1,000": balanced(max_ratio=1000.0),
    "balanced, per layer": balanced_per_layer(),
}
METHODS = OURS | FIXED | PEERS | VARIANTS
BASES: tuple[Base, ...] = ("muon", "adam", "sgd", "lion")
