"""The optimizers of a run, one after the other, each for a range of steps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import stablegrad_optax as sg
from examples.common import optimizers
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import UNKNOWNS, Objective, unknowns_of, weighted_sum


class Found(NamedTuple):
    """What a step has found out."""

    loss: jax.Array
    gradient: Any
    """What the base optimizer and its scale control were given."""
    losses: dict[str, jax.Array]
    """The terms of the loss, without weights; none from L-BFGS."""
    term_grads: dict[str, Any]
    term_weights: dict[str, jax.Array]
    """By what the gradients of the terms were multiplied."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """Training by one optimizer, from step `first` to step `end` of the run."""

    first: int
    end: int
    optimizer: Callable[[Any], optax.GradientTransformationExtraArgs]
    """Maps the learning rate to the optimizer."""
    update: Callable[..., tuple[Any, Any, Found]]
    """Maps params, optimizer state, learning rate, seed and step of the run to new
    params and state, and to what was found on the way."""


def phases(objective: Objective) -> list[Phase]:
    """The phases of a configuration; those without steps are left out."""
    both = first_order(objective), lbfgs(objective)
    return [phase for phase in both if phase.end > phase.first]


def first_order(objective: Objective) -> Phase:
    """The base optimizer and its scale control, behind the sum of the terms."""
    config = objective.config
    importance = objective.weights(objective.term_names)
    if config.terms == "balanced":
        one_gradient = sg.balance_terms(objective.term_names, importance)
    else:
        one_gradient = optax.stateless(lambda grads, _: weighted_sum(grads, importance))

    def optimizer(lr):
        return optax.chain(one_gradient, optimizer_of(config, lr))

    def update(params, state, lr, seed, step):
        key = jax.random.key(1000 + seed)
        key = jax.random.fold_in(key, step if config.points == "resampled" else 0)
        points = objective.sample(key, config.interior_points)
        (losses, predictions), grads = sg.value_and_grad_of_terms(
            objective.terms, has_aux=True
        )(params, points)
        loss, slope = jax.value_and_grad(objective.loss)(
            predictions, points, unknowns_of(params)
        )
        extra = {"values": losses}
        if config.scale_control == "stablegrad-prediction":
            extra["reference"] = sg.reference_scale(slope)
        updates, state = optimizer(lr).update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
        if config.terms == "balanced":
            weights = state[0].weights
        else:
            weights = jax.tree.map(jnp.float32, importance)
        gradient = weighted_sum(grads, weights)
        return params, state, Found(loss, gradient, losses, grads, weights)

    return Phase(0, config.steps, optimizer, update)


def lbfgs(objective: Objective) -> Phase:
    """L-BFGS with a zoom line search, on fixed points."""
    config = objective.config
    tx = optax.lbfgs()

    def update(params, state, lr, seed, step):
        points = objective.sample(jax.random.key(2000 + seed), config.lbfgs_points)

        def loss(params):
            return objective.weighted(params, points)

        value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        params = optax.apply_updates(params, updates)
        return params, state, Found(value, grads, {}, {}, {})

    end = config.steps + config.lbfgs_steps
    return Phase(config.steps, end, lambda lr: tx, update)


def optimizer_of(
    config: Config, lr: jax.Array | float
) -> optax.GradientTransformationExtraArgs:
    """The base optimizer and its scale control that a configuration names."""
    options = {}
    if config.scale_control.startswith("stablegrad"):
        options = {"group_by": config.group_by, "statistic": config.statistic}
    control = optimizers.scale_control(config.scale_control, stack_axis, **options)
    if config.find_problem().unknowns:
        control = optax.masked(control, _is_network)
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


def _is_network(params: Any) -> Any:
    """Unknown coefficients are in no layer, so no layer's gain is for them."""
    return {name: name != UNKNOWNS for name in params}
