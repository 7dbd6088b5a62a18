"""What a step of training does: a first-order optimizer, then one of second order."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import stablegrad_optax as sg
from examples.common import optimizers
from examples.pinn import gauss_newton, sampling
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import UNKNOWNS, Objective, weighted_sum


class Found(NamedTuple):
    """What a step has found out."""

    loss: jax.Array
    gradient: Any
    """What the base optimizer and its scale control were given."""
    term_grads: dict[str, Any]
    """Of each term by itself; none at second order."""
    term_weights: dict[str, jax.Array]
    """By what the gradients of the terms were multiplied."""


class Phase(NamedTuple):
    """Training by one optimizer, from step `first` to step `end` of the run."""

    optimizer: str
    first: int
    end: int
    start: Callable[..., Any]
    """Maps params, learning rate and seed to the state of the optimizer."""
    update: Callable[..., tuple[Any, Any, Found]]
    """Maps params, optimizer state, learning rate, seed and step of the run to new
    params and state, and to what was found on the way."""


def phases_of(objective: Objective) -> list[Phase]:
    """The phases of a run that have steps."""
    all_three = first_order(objective), second_order(objective), lbfgs(objective)
    return [phase for phase in all_three if phase.end > phase.first]


def balanced(
    terms: Sequence[str],
    weights: Mapping[str, float] | None,
    steps: int,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Balanced terms at full strength for half of the steps, and fading over the rest.

    Memory and pull keep a network from getting stuck; when it is where it should be,
    equal scales of the terms are more accurate. The options are those of
    `sg.balance_terms`.
    """
    half = steps // 2
    strength = optax.linear_schedule(1.0, 0.0, steps - half, transition_begin=half)
    return sg.balance_terms(terms, weights, strength=strength, **options)


def first_order(objective: Objective) -> Phase:
    """The base optimizer and its scale control, behind the sum of the terms."""
    config, weights = objective.config, objective.weights
    if config.terms == "balanced":
        one_gradient = balanced(tuple(weights), weights, config.steps)
    else:
        one_gradient = optax.stateless(lambda grads, _: weighted_sum(grads, weights))

    def optimizer(lr):
        return optax.chain(one_gradient, optimizer_of(config, lr))

    def start(params, lr, seed):
        del seed
        return optimizer(lr).init(params)

    def update(params, state, lr, seed, step):
        points = sampling.drawn(objective, seed, step)
        (losses, predictions), grads = sg.value_and_grad_of_terms(
            objective.terms, has_aux=True
        )(params, points)
        loss, extra = weighted_sum(losses, weights), {"values": losses}
        if config.scale_control == "stablegrad-prediction":

            def of_predictions(predictions):
                losses = objective.losses(
                    predictions, points, objective.unknowns(params)
                )
                return weighted_sum(losses, weights)

            slope = jax.grad(of_predictions)(predictions)
            extra["reference"] = sg.reference_scale(slope)
        updates, state = optimizer(lr).update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
        if config.terms == "balanced":
            used = state[0].weights
        else:
            used = jax.tree.map(jnp.float32, weights)
        found = Found(loss, weighted_sum(grads, used), grads, used)
        return params, state, found

    return Phase(config.optimizer, 0, config.steps, start, update)


def second_order(objective: Objective) -> Phase:
    """Gauss-Newton on new points at each step, whose size falls in the second half."""
    config = objective.config
    if config.gauss_newton_steps:
        gauss_newton.check(objective)
    first, end = config.steps, config.steps + config.gauss_newton_steps
    half = (first + end) // 2
    size = optax.linear_schedule(1.0, 0.0, end - half, transition_begin=half)

    def start(params, lr, seed):
        del lr, seed
        return gauss_newton.init(params)

    def update(params, state, lr, seed, step):
        del lr
        key = jax.random.fold_in(jax.random.key(4000 + seed), step)
        of_points, of_values = jax.random.split(key)
        counting, points = objective, sampling.drawn(objective, seed, step)
        if config.points == "adaptive":
            counting, points = sampling.drawn_by_residual(
                objective, params, points, of_points
            )
        params, state, loss, gradient = gauss_newton.update(
            counting, params, state, points, size(step), of_values
        )
        return params, state, Found(loss, gradient, {}, {})

    return Phase("Gauss-Newton", first, end, start, update)


def lbfgs(objective: Objective) -> Phase:
    """L-BFGS with a zoom line search, on fixed points and with fixed weights.

    Balanced terms have the weights that make their scales equal at its start.
    """
    config, tx = objective.config, optax.lbfgs()
    first = config.steps + config.gauss_newton_steps

    def fixed_points(seed):
        return objective.sample(jax.random.key(2000 + seed), config.lbfgs_points)

    def start(params, lr, seed):
        del lr
        weights = objective.weights
        if config.terms == "balanced":
            equal = sg.balance_terms(tuple(weights), weights, power=0, strength=0)
            losses = sg.value_and_grad_of_terms(objective.terms, has_aux=True)
            _, grads = losses(params, fixed_points(seed))
            weights = equal.update(grads, equal.init(params))[1].weights
        return weights, tx.init(params)

    def update(params, state, lr, seed, step):
        del lr, step
        weights, state = state
        points = fixed_points(seed)

        @jax.jit  # traced once, and taken in several places of the line search
        def loss(params):
            return weighted_sum(objective.terms(params, points)[0], weights)

        value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        params = optax.apply_updates(params, updates)
        return params, (weights, state), Found(value, grads, {}, {})

    return Phase("L-BFGS", first, first + config.lbfgs_steps, start, update)


def optimizer_of(
    config: Config, lr: jax.Array | float
) -> optax.GradientTransformationExtraArgs:
    """The base optimizer and its scale control that a configuration names."""
    options = {}
    if config.scale_control.startswith("stablegrad"):
        options = {"group_by": config.group_by, "statistic": config.statistic}
    control = optimizers.scale_control(config.scale_control, stack_axis, **options)
    if config.find_problem().unknowns:
        # Unknown coefficients are in no layer, so no layer's gain is for them.
        control = optax.masked(
            control, lambda params: {name: name != UNKNOWNS for name in params}
        )
    schedule = {
        "cosine": optax.cosine_decay_schedule(1.0, max(config.steps, 1)),
        "exponential": optax.exponential_decay(1.0, 1000, 0.9),
        "constant": optax.constant_schedule(1.0),
    }[config.schedule]

    def rate(count):
        return lr * schedule(count)

    if config.order == "before":
        return optax.chain(control, optimizers.base(config.optimizer, rate, stack_axis))
    # The rate comes last: the control would cancel it.
    base = optimizers.base(config.optimizer, 1.0, stack_axis)
    return optax.chain(base, control, optax.scale_by_schedule(rate))
