"""Methods that make one gradient of those of a loss's terms: ours and others.

A method makes an optax transformation for some terms. Its update takes the gradients by
name, their `values`, and the `weight` of the conditions, which only "weight" looks at.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import stablegrad_optax as sg

RESIDUAL = "residual"
"""The term that is not a condition."""

Method = Callable[[Sequence[str]], optax.GradientTransformationExtraArgs]
Weights = Mapping[str, jax.Array | float]


def weighted(
    weights_of: Callable[..., Weights], decay: float = 0.0, every: int = 1
) -> Method:
    """The sum by the moving average of weights, renewed `every` steps, from 1 on."""

    def method(terms):
        def init_fn(params):
            del params
            return {"weights": dict.fromkeys(terms, jnp.ones(())), "step": jnp.int32(0)}

        def update_fn(grads, state, params=None, *, weight=1.0, **extra_args):
            del params, extra_args
            is_due = state["step"] % every == 0
            new = weights_of(grads, weight=weight)
            weights = {
                name: jnp.where(is_due, decay * old + (1 - decay) * new[name], old)
                for name, old in state["weights"].items()
            }
            scaled = [
                jax.tree.map(lambda g, w=w: w * g, grads[name])
                for name, w in weights.items()
            ]
            total = jax.tree.map(lambda *leaves: sum(leaves), *scaled)
            return total, {"weights": weights, "step": state["step"] + 1}

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)

    return method


def fixed(grads: Mapping[str, Any], weight: jax.Array) -> Weights:
    """1 for the residual and `weight` for each condition."""
    return {name: 1.0 if name == RESIDUAL else weight for name in grads}


def equal_scales(grads: Mapping[str, Any], **_: Any) -> Weights:
    """What `sg.balance_terms` did in release 0.1: each term over its own scale."""
    return {name: 1 / scale for name, scale in sg.term_scales(grads).items()}


def gradient_norms(grads: Mapping[str, Any], **_: Any) -> Weights:
    """Wang, Sankaran, Wang, Perdikaris 2023 (2308.08468): Σ_j |g_j| / |g_k|."""
    scales = sg.term_scales(grads)
    return {name: sum(scales.values()) / scale for name, scale in scales.items()}


def annealed(grads: Mapping[str, Any], **_: Any) -> Weights:
    """Wang, Teng, Perdikaris 2021 (2001.04536): max |g_residual| / mean |g_k|."""
    sizes = {name: jnp.abs(ravel_pytree(grad)[0]) for name, grad in grads.items()}
    largest = jnp.max(sizes[RESIDUAL])
    weights = {name: largest / jnp.mean(x) for name, x in sizes.items()}
    return weights | {RESIDUAL: 1.0}


def config(grads: Mapping[str, Any], **_: Any) -> Weights:
    """ConFIG, Liu, Chu, Thuerey 2024 (2408.11104), as weights of the gradients.

    The direction g has the same cosine with all of them: with unit vectors u_k and
    their cosines C, g = Σ_k a_k u_k where C a = 1. Its length is Σ_k <g_k, g> / |g|.
    """
    cosines = sg.term_alignment(grads)
    names = sorted(grads)
    norms = jnp.stack([jnp.linalg.norm(ravel_pytree(grads[n])[0]) for n in names])
    solution = jnp.linalg.pinv(cosines, hermitian=True) @ jnp.ones(len(cosines))
    length = jnp.sqrt(solution @ cosines @ solution)
    weights = solution / norms / length * (norms @ cosines @ solution / length)
    return dict(zip(names, weights, strict=True))


def multi_adam(terms: Sequence[str]) -> optax.GradientTransformationExtraArgs:
    """Yao et al. 2023 (2306.02816): the mean of Adam's steps, each for one term."""
    adam = optax.scale_by_adam(b1=0.99, b2=0.99)

    def update_fn(grads, state, params=None, **extra_args):
        del params, extra_args
        steps, state = adam.update(grads, state)
        mean = jax.tree.map(lambda *x: sum(x) / len(x), *steps.values())
        return mean, state

    return optax.GradientTransformationExtraArgs(
        lambda params: adam.init(dict.fromkeys(terms, params)), update_fn
    )


METHODS: dict[str, Method] = {
    "balanced": sg.balance_terms,
    "equal scales (0.1)": weighted(equal_scales),
    "weight": weighted(fixed),
    "gradient norms": weighted(gradient_norms, decay=0.9, every=100),
    "annealing": weighted(annealed, decay=0.1, every=10),
    "ConFIG": weighted(config),
    "MultiAdam": multi_adam,
}
