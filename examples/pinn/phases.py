"""The optimizers of a run, one after the other, each for a range of steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

import stablegrad_optax as sg
from examples.common import optimizers
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import Objective


@dataclasses.dataclass(frozen=True)
class Phase:
    """Training by one optimizer, from step `first` to step `end` of the run."""

    first: int
    end: int
    optimizer: Callable[[Any], optax.GradientTransformationExtraArgs]
    """Maps the learning rate to the optimizer."""
    gradient: Callable[..., tuple[jax.Array, Any, dict[str, Any]]]
    """Maps params, optimizer state, seed and step of the run to the loss, its gradient
    and the further arguments of the optimizer's update."""

    def update(self, params, state, lr, seed, step) -> tuple[Any, Any, jax.Array, Any]:
        """One step: new params and state; the loss and gradient that led to them."""
        loss, grads, extra = self.gradient(params, state, seed, step)
        updates, state = self.optimizer(lr).update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, loss, grads


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
        loss, grads, reference = sg.value_and_grad_with_reference(
            objective.predict, objective.loss
        )(params, points)
        takes_it = config.scale_control == "stablegrad-prediction"
        return loss, grads, {"reference": reference} if takes_it else {}

    return Phase(0, config.steps, lambda lr: optimizer_of(config, lr), gradient)


def lbfgs(objective: Objective) -> Phase:
    """L-BFGS with a zoom line search, on fixed points."""
    config = objective.config

    def gradient(params, state, seed, step):
        points = objective.sample(jax.random.key(2000 + seed), config.lbfgs_points)

        def loss(params):
            return objective.loss(objective.predict(params, points), points)

        value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        return value, grads, {"value": value, "grad": grads, "value_fn": loss}

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
