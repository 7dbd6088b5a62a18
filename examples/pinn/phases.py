"""The optimizers of a run, one after the other, each for a stretch of steps."""

import abc
from typing import Any, NamedTuple

import jax
import optax

import stablegrad_optax as sg
from examples.common import optimizers
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import Objective


class Update(NamedTuple):
    """What a step of an optimizer gives."""

    params: Any
    state: Any
    loss: jax.Array
    """Of the parameters before the step, and so is the gradient."""
    grads: Any


class Phase(abc.ABC):
    """A stretch of training by one optimizer: `first` .. `first + steps`."""

    def __init__(self, objective: Objective, first: int, steps: int):
        self.objective, self.config = objective, objective.config
        self.first, self.steps = first, steps

    @property
    def end(self) -> int:
        return self.first + self.steps

    @abc.abstractmethod
    def init(self, params: Any, lr: jax.Array) -> Any:
        """The optimizer's state at the beginning of the stretch."""

    @abc.abstractmethod
    def update(self, params: Any, state: Any, lr, seed, step) -> Update:
        """A step; `step` counts from the beginning of the run."""


class FirstOrder(Phase):
    """The base optimizer behind its scale control."""

    def init(self, params, lr):
        return optimizer_of(self.config, lr).init(params)

    def update(self, params, state, lr, seed, step):
        config, objective = self.config, self.objective
        index = step if config.points == "resampled" else 0
        key = jax.random.fold_in(jax.random.key(1000 + seed), index)
        points = objective.sample(key, config.interior_points)
        value_and_grad = sg.value_and_grad_with_reference(
            objective.predict, objective.loss
        )
        loss, grads, reference = value_and_grad(params, points)
        extra = {}
        if config.scale_control == "stablegrad-prediction":
            extra = {"reference": reference}
        optimizer = optimizer_of(config, lr)
        updates, state = optimizer.update(grads, state, params, **extra)
        return Update(optax.apply_updates(params, updates), state, loss, grads)


class Lbfgs(Phase):
    """L-BFGS with a zoom line search, on points that stay the same."""

    def init(self, params, lr):
        return optax.lbfgs().init(params)

    def update(self, params, state, lr, seed, step):
        objective, solver = self.objective, optax.lbfgs()
        key = jax.random.key(2000 + seed)
        points = objective.sample(key, self.config.lbfgs_points)

        def loss(params):
            return objective.loss(objective.predict(params, points), points)

        value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = solver.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return Update(optax.apply_updates(params, updates), state, value, grads)


def optimizer_of(
    config: Config, lr: jax.Array | float
) -> optax.GradientTransformationExtraArgs:
    """The base optimizer and its scale control, that a configuration names."""
    options = {}
    if config.scale_control.startswith("stablegrad"):
        options = {"group_by": config.group_by, "statistic": config.statistic}
    control = optimizers.scale_control(config.scale_control, stack_axis, **options)
    rate = learning_rate(config, lr)
    if config.order == "before":
        return optax.chain(control, optimizers.base(config.optimizer, rate, stack_axis))
    # The rate comes last: a control would take it out again.
    base = optimizers.base(config.optimizer, 1.0, stack_axis)
    return optax.chain(base, control, optax.scale_by_schedule(rate))


def learning_rate(config: Config, lr: jax.Array | float) -> optax.Schedule:
    """The rate at each step, from `lr` on."""
    shapes = {
        "cosine": optax.cosine_decay_schedule(1.0, max(config.steps, 1)),
        "exponential": optax.exponential_decay(1.0, 1000, 0.9),
        "constant": optax.constant_schedule(1.0),
    }
    return lambda count: lr * shapes[config.schedule](count)
