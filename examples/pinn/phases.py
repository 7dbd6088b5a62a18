"""The optimizers of a run, one after the other, each for a range of steps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import stablegrad_optax as sg
from examples.common import optimizers
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import UNKNOWNS, Objective, unknowns_of


class Gradient(NamedTuple):
    """What a step has found out."""

    loss: jax.Array
    total: Any
    losses: dict[str, jax.Array]
    """The terms of the loss, without weights; none from L-BFGS."""
    terms: Any
    """Their gradients, stacked along the first axis of each leaf."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """Training by one optimizer, from step `first` to step `end` of the run."""

    first: int
    end: int
    optimizer: Callable[[Any], optax.GradientTransformationExtraArgs]
    """Maps the learning rate to the optimizer."""
    gradient: Callable[..., tuple[Gradient, dict[str, Any]]]
    """Maps params, optimizer state, seed and step of the run to the gradient, and to
    the further arguments of the optimizer's update."""

    def update(self, params, state, lr, seed, step) -> tuple[Any, Any, Gradient]:
        """One step: new params and state, and the gradient that led to them."""
        gradient, extra = self.gradient(params, state, seed, step)
        optimizer = self.optimizer(lr)
        updates, state = optimizer.update(gradient.total, state, params, **extra)
        return optax.apply_updates(params, updates), state, gradient


def phases(objective: Objective) -> list[Phase]:
    """The phases of a configuration; those without steps are left out."""
    both = first_order(objective), lbfgs(objective)
    return [phase for phase in both if phase.end > phase.first]


def first_order(objective: Objective) -> Phase:
    """The base optimizer and its scale control."""
    config = objective.config

    def gradient(params, state, seed, step):
        key = jax.random.key(1000 + seed)
        key = jax.random.fold_in(key, step if config.points == "resampled" else 0)
        points = objective.sample(key, config.interior_points)
        (losses, predictions), terms = sg.value_and_grad_of_terms(
            objective.terms, has_aux=True
        )(params, points)
        loss, slope = jax.value_and_grad(objective.loss)(
            predictions, points, unknowns_of(params)
        )
        takes_it = config.scale_control == "stablegrad-prediction"
        extra = {"reference": sg.reference_scale(slope)} if takes_it else {}
        return Gradient(loss, objective.combine(terms, losses), losses, terms), extra

    return Phase(0, config.steps, lambda lr: optimizer_of(config, lr), gradient)


def lbfgs(objective: Objective) -> Phase:
    """L-BFGS with a zoom line search, on fixed points."""
    config = objective.config

    def gradient(params, state, seed, step):
        points = objective.sample(jax.random.key(2000 + seed), config.lbfgs_points)

        def loss(params):
            return objective.weighted(params, points)

        value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        extra = {"value": value, "grad": grads, "value_fn": loss}
        return Gradient(value, grads, {}, {}), extra

    end = config.steps + config.lbfgs_steps
    return Phase(config.steps, end, lambda lr: optax.lbfgs(), gradient)


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
