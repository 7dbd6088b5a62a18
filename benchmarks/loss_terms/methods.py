"""Methods that make one gradient of those of a loss's terms: ours and others.

A method makes an optax transformation for some terms and a number of steps; some have
options. Its update takes the gradients by name and their `values`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import stablegrad_optax as sg
from examples.pinn.step import balanced

RESIDUAL = "residual"
"""The term that is not a condition."""

Method = Callable[..., optax.GradientTransformationExtraArgs]
Weights = Mapping[str, jax.Array | float]


def weighted(
    weights_of: Callable[..., Weights],
    decay: float = 0.0,
    every: int = 1,
    debias: bool = False,
) -> Method:
    """The sum by the moving average of weights, renewed `every` steps.

    The average starts from 1; with `debias` from 0, and is corrected as Adam's.
    """

    def method(terms, steps):
        del steps

        def init_fn(params):
            del params
            start = jnp.zeros(()) if debias else jnp.ones(())
            return {"weights": dict.fromkeys(terms, start), "step": jnp.int32(0)}

        def update_fn(grads, state, params=None, **extra_args):
            del params, extra_args
            is_due = state["step"] % every == 0
            new = weights_of(grads)
            weights = {
                name: jnp.where(is_due, decay * old + (1 - decay) * new[name], old)
                for name, old in state["weights"].items()
            }
            renewals = state["step"] // every + 1
            correction = 1 - decay**renewals if debias else 1
            used = {name: w / correction for name, w in weights.items()}
            total = weighted_sum(grads, used)
            return total, {"weights": weights, "step": state["step"] + 1}

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)

    return method


def weighted_sum(grads: Mapping[str, Any], weights: Weights) -> Any:
    scaled = [
        jax.tree.map(lambda g, w=w: w * g, grads[name]) for name, w in weights.items()
    ]
    return jax.tree.map(lambda *leaves: sum(leaves), *scaled)


def fixed(terms, steps, weight: jax.Array | float):
    """1 for the residual and `weight` for each condition."""
    weights = {name: 1.0 if name == RESIDUAL else weight for name in terms}
    return weighted(lambda grads: weights)(terms, steps)


def over(x: jax.Array | float, scale: jax.Array) -> jax.Array:
    """The quotient, and 0 where the scale is 0: such a term adds nothing."""
    return jnp.where(scale == 0, 0, x / jnp.where(scale == 0, 1, scale))


def equal_scales(grads: Mapping[str, Any]) -> Weights:
    """What `sg.balance_terms` did in release 0.1: each term over its own scale."""
    return {name: over(1, scale) for name, scale in sg.term_scales(grads).items()}


def gradient_norms(grads: Mapping[str, Any]) -> Weights:
    """Wang, Sankaran, Wang, Perdikaris 2023 (2308.08468): Σ_j |g_j| / |g_k|."""
    scales = sg.term_scales(grads)
    total = sum(scales.values())
    return {name: over(total, scale) for name, scale in scales.items()}


def dynamic_norms(grads: Mapping[str, Any]) -> Weights:
    """DN-PINN, Deguchi and Asai 2023: |g_residual| / |g_k|, with a bias correction."""
    scales = sg.term_scales(grads)
    return {name: over(scales[RESIDUAL], scale) for name, scale in scales.items()}


def annealed(grads: Mapping[str, Any]) -> Weights:
    """Wang, Teng, Perdikaris 2021 (2001.04536): max |g_residual| / mean |g_k|."""
    sizes = {name: jnp.abs(ravel_pytree(grad)[0]) for name, grad in grads.items()}
    largest = jnp.max(sizes[RESIDUAL])
    weights = {name: largest / jnp.mean(x) for name, x in sizes.items()}
    return weights | {RESIDUAL: 1.0}


def config(grads: Mapping[str, Any]) -> Weights:
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


METHODS: dict[str, Method] = {
    "balanced": lambda terms, steps: balanced(terms, None, steps),
    "equal scales (0.1)": weighted(equal_scales),
    "weight": fixed,
    "gradient norms": weighted(gradient_norms, decay=0.9, every=100),
    "DN-PINN": weighted(dynamic_norms, decay=0.99, every=10, debias=True),
    "annealing": weighted(annealed, decay=0.1, every=10),
    "ConFIG": weighted(config),
}
"""What comes before the optimizer."""


# --- One optimizer for each term ---


def each_term(
    terms: Sequence[str],
    optimizer: optax.GradientTransformation,
    combine: Callable[[Sequence[Any]], Any],
) -> optax.GradientTransformationExtraArgs:
    """Combines the steps that an optimizer makes for each term by itself."""

    def init_fn(params):
        return {name: optimizer.init(params) for name in terms}

    def update_fn(grads, state, params=None, **extra_args):
        del extra_args
        found = {n: optimizer.update(grads[n], state[n], params) for n in terms}
        steps = [step for step, _ in found.values()]
        total = jax.tree.map(lambda *leaves: combine(leaves), *steps)
        return total, {name: new for name, (_, new) in found.items()}

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def multi_adam(
    terms: Sequence[str], base: optax.GradientTransformation, rate: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """Yao et al. 2023 (2306.02816): the mean of Adam's steps, each for one term."""
    del base  # it is an optimizer itself
    adam = optax.scale_by_adam(b1=0.99, b2=0.99)
    mean = each_term(terms, adam, lambda steps: sum(steps) / len(steps))
    return optax.chain(mean, optax.scale_by_learning_rate(rate))


def auto_balance(
    terms: Sequence[str], base: optax.GradientTransformation, rate: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """An et al. 2025 (2510.06684): the sum of an optimizer's steps for each term."""
    del rate  # that of the optimizer
    return each_term(terms, base, sum)


OPTIMIZERS = {"MultiAdam": multi_adam, "AutoBalance": auto_balance}
"""What takes the place of the optimizer: maps the terms, the base optimizer and its
schedule to another one."""


# --- Variants of our rule ---


def remembered(average: Callable[..., Any], start: float = 0.0) -> Method:
    """Balanced terms with another memory, at the default decay and power.

    `average` maps the scales, the memory and the number of the step, from 1 on, to the
    remembered scales and the new memory.
    """

    def method(terms, steps):
        del steps

        def init_fn(params):
            del params
            return {"memory": jnp.full(len(terms), start), "step": jnp.int32(0)}

        def update_fn(grads, state, params=None, *, values, **extra_args):
            del params, extra_args
            by_name = sg.term_scales(grads)
            scales = jnp.stack([by_name[name] for name in terms])
            step = state["step"] + 1
            averages, memory = average(scales, state["memory"], step)
            distances = over(jnp.stack([values[name] for name in terms]), scales)
            pull = jnp.sqrt(distances / jnp.max(distances))
            weights = over(pull, jnp.maximum(averages, scales / 3))
            total = weighted_sum(grads, dict(zip(terms, weights, strict=True)))
            return total, {"memory": memory, "step": step}

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)

    return method


def running_mean(
    of: Callable[[jax.Array], jax.Array], inverse: Callable[[jax.Array], jax.Array]
) -> Method:
    """The memory is a mean of a function of the scale, corrected as Adam's."""

    def average(scales, memory, step):
        memory = 0.99 * memory + 0.01 * of(scales)
        return inverse(memory / (1 - 0.99**step)), memory

    return remembered(average)


def largest_at_first(scales, memory, step):
    """The largest scale of the first hundred steps, and no memory after them."""
    memory = jnp.where(step <= 100, jnp.maximum(memory, scales), memory)
    return memory, memory


VARIANTS: dict[str, Method] = {
    "full strength": lambda terms, steps: sg.balance_terms(terms),
    "settings": lambda terms, steps, **options: balanced(terms, None, steps, **options),
    "mean of squares": running_mean(jnp.square, jnp.sqrt),
    "mean of log": running_mean(jnp.log, jnp.exp),
    "mean": running_mean(lambda s: s, lambda s: s),
    "largest of the first hundred": remembered(largest_at_first),
}
"""Other settings of our rule, and other memories of a term's scale."""
