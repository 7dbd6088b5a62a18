"""Training: all learning rates and seeds as columns of one jitted program."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import stablegrad_optax as sg
from examples.common import optimizers
from examples.pinn import operators
from examples.pinn.config import Config
from examples.pinn.network import DeepNetwork, stack_axis
from examples.pinn.problems import PROBLEMS, Problem

ACTIVATIONS: dict[str, operators.Activation] = {
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
}

# Points whose streams stay in a CPU's cache on their way through the layers.
CPU_BLOCK = 256


class Column(NamedTuple):
    """One learning rate and seed; in a run these have leading axes (rates, seeds)."""

    params: Any
    state: Any
    stopped_at: jax.Array
    """The step at which the loss was no longer finite, or -1."""


class Report(NamedTuple):
    """Where all columns stand after some steps."""

    loss: jax.Array
    relative_l2: jax.Array
    layer_scales: dict[str, jax.Array]


def network_of(config: Config) -> DeepNetwork:
    """The network that a configuration names."""
    problem = PROBLEMS[config.problem]
    activation = ACTIVATIONS[config.activation]
    initializers: dict[str, Callable[[], Any]] = {
        "glorot": jax.nn.initializers.glorot_normal,
        "critical": functools.partial(sg.initializers.critical, activation),
        "variance-preserving": functools.partial(
            sg.initializers.variance_preserving, activation
        ),
    }
    return DeepNetwork(
        depth=config.depth,
        width=config.width,
        lower=problem.lower,
        upper=problem.upper,
        activation=activation,
        kernel_init=initializers[config.initialization](),
    )


def values(network: DeepNetwork, params: Any, points: jax.Array) -> jax.Array:
    """The network's u at points of shape (n, dimension)."""
    return cast(dict[str, jax.Array], network.apply(params, points))["u"]


class Objective:
    """The loss of a problem: mean squares of the residual and of the conditions."""

    def __init__(self, config: Config, problem: Problem, network: DeepNetwork):
        self.config, self.problem, self.network = config, problem, network
        self.sweep = operators.Sweep.of(problem.operators)
        on_cpu = jax.default_backend() == "cpu"
        self.block = CPU_BLOCK if on_cpu else None

    def sample(self, key: jax.Array, interior: int) -> dict[str, jax.Array]:
        """Points inside and on each condition's part of the boundary, by name."""
        config, problem = self.config, self.problem
        keys = jax.random.split(key, 1 + len(problem.conditions))
        points = {"interior": problem.sample_interior(keys[0], interior, config.dtype)}
        for key, condition in zip(keys[1:], problem.conditions, strict=True):
            points[condition.name] = problem.sample_condition(
                condition, key, config.condition_points, config.dtype
            )
        return points

    def predict(self, params: Any, points: dict[str, jax.Array]) -> dict[str, Any]:
        """What the network says: u and its derivatives inside, u on the conditions."""

        def inside(x):
            return self.network.apply(params, x, self.sweep)

        predictions = {
            name: values(self.network, params, x)
            for name, x in points.items()
            if name != "interior"
        }
        interior = operators.in_blocks(inside, points["interior"], self.block)
        return predictions | {"interior": interior}

    def loss(self, predictions: dict[str, Any], points: dict[str, jax.Array]):
        """One number for what the network says."""
        residual = self.problem.residual(points["interior"], **predictions["interior"])
        total = jnp.mean(residual**2)
        for condition in self.problem.conditions:
            target = condition.target(points[condition.name])
            deviation = predictions[condition.name] - target
            total += self.config.condition_weight * jnp.mean(deviation**2)
        return total


class Phase:
    """A stretch of training by one optimizer: `first` .. `first + steps`."""

    def __init__(self, objective: Objective, first: int, steps: int):
        self.objective, self.config = objective, objective.config
        self.first, self.steps = first, steps

    def init(self, params: Any, lr: jax.Array) -> Any:
        raise NotImplementedError

    def update(self, column: Column, lr, seed, step) -> tuple[Any, Any, Any, Any]:
        """New parameters and state, the loss before, and the gradient."""
        raise NotImplementedError


class FirstOrder(Phase):
    """The base optimizer behind its scale control."""

    def _optimizer(self, lr: jax.Array) -> optax.GradientTransformationExtraArgs:
        config = self.config
        options = {}
        if config.scale_control.startswith("stablegrad"):
            options = {"group_by": config.group_by, "statistic": config.statistic}
        control = optimizers.scale_control(config.scale_control, stack_axis, **options)
        rate = learning_rate(config, lr)
        return optax.chain(control, optimizers.base(config.optimizer, rate, stack_axis))

    def init(self, params, lr):
        return self._optimizer(lr).init(params)

    def update(self, column, lr, seed, step):
        config, objective = self.config, self.objective
        index = step if config.points == "resampled" else 0
        key = jax.random.fold_in(jax.random.key(1000 + seed), index)
        points = objective.sample(key, config.interior_points)
        value_and_grad = sg.value_and_grad_with_reference(
            objective.predict, objective.loss
        )
        loss, grads, reference = value_and_grad(column.params, points)
        extra = {}
        if config.scale_control == "stablegrad-prediction":
            extra = {"reference": reference}
        updates, state = self._optimizer(lr).update(
            grads, column.state, column.params, **extra
        )
        return optax.apply_updates(column.params, updates), state, loss, grads


class Lbfgs(Phase):
    """L-BFGS with a zoom line search, on points that stay the same."""

    def init(self, params, lr):
        return optax.lbfgs().init(params)

    def update(self, column, lr, seed, step):
        objective, solver = self.objective, optax.lbfgs()
        key = jax.random.key(2000 + seed)
        points = objective.sample(key, self.config.lbfgs_points)

        def loss(params):
            return objective.loss(objective.predict(params, points), points)

        value_and_grad = optax.value_and_grad_from_state(loss)
        value, grads = value_and_grad(column.params, state=column.state)
        updates, state = solver.update(
            grads, column.state, column.params, value=value, grad=grads, value_fn=loss
        )
        return optax.apply_updates(column.params, updates), state, value, grads


def learning_rate(config: Config, lr: jax.Array) -> optax.Schedule:
    """The rate at each step, from `lr` on."""
    shapes = {
        "cosine": optax.cosine_decay_schedule(1.0, max(config.steps, 1)),
        "exponential": optax.exponential_decay(1.0, 1000, 0.9),
        "constant": optax.constant_schedule(1.0),
    }
    return lambda count: lr * shapes[config.schedule](count)


class Program:
    """The jitted functions of a run and the columns that they advance."""

    def __init__(self, config: Config):
        self.config = config
        self.problem = PROBLEMS[config.problem]
        self.network = network_of(config)
        self.objective = Objective(config, self.problem, self.network)
        self.phases = [
            phase
            for phase in (
                FirstOrder(self.objective, 0, config.steps),
                Lbfgs(self.objective, config.steps, config.lbfgs_steps),
            )
            if phase.steps
        ]
        self.total_steps = config.steps + config.lbfgs_steps
        self.step = 0
        self.compile_seconds = 0.0
        self.run_seconds = 0.0
        self.steps_made = 0
        self._compiled: dict[tuple[int, int], Any] = {}
        self._lr = jnp.asarray(config.lr, config.dtype)
        self._seeds = jnp.arange(config.seeds)
        grid = self.problem.grid().reshape(-1, self.problem.dimension)
        self._grid = jnp.asarray(grid, config.dtype)
        self._exact = jnp.asarray(self.problem.exact(grid), config.dtype)
        self.columns = self._start()

    def run(self) -> Iterator[tuple[int, Report]]:
        """Advances chunk by chunk; yields the number of steps done and a report."""
        while self.step < self.total_steps:
            phase = self._phase()
            if self.step == phase.first and self.step > 0:
                self.columns = self._begin(phase, self.columns)
            end = phase.first + phase.steps
            length = min(self.config.chunk, end - self.step)
            advance = self._advance(phase, length)
            start = time.perf_counter()
            self.columns, report = advance(self.columns, jnp.asarray(self.step))
            report = jax.device_get(report)
            self.run_seconds += time.perf_counter() - start
            self.step += length
            self.steps_made += length
            yield self.step, report

    def restore(self, step: int, columns: Column) -> None:
        """Goes on from a checkpoint."""
        self.step, self.columns = step, columns

    def params(self, rate: int, seed: int) -> Any:
        """The parameters of one column."""
        return jax.tree.map(lambda x: x[rate, seed], self.columns.params)

    @property
    def steps_per_second(self) -> float | None:
        """Of the steps that this process has made, compilation not counted."""
        return self.steps_made / self.run_seconds if self.steps_made else None

    def stopped(self) -> dict[tuple[float, int], int]:
        """The step at which a column's loss was no longer finite, by rate and seed."""
        at = np.asarray(self.columns.stopped_at)
        return {
            (self.config.lr[rate], int(seed)): int(at[rate, seed])
            for rate, seed in np.argwhere(at >= 0)
        }

    def template(self, step: int) -> Column:
        """The form of the columns after some steps, for reading a checkpoint."""
        phase = self._phase(max(step - 1, 0))
        return jax.eval_shape(functools.partial(self._begin, phase), self.columns)

    def _phase(self, step: int | None = None) -> Phase:
        step = self.step if step is None else step
        return next(p for p in self.phases if step < p.first + p.steps)

    def _over_columns(self, f: Callable) -> Callable:
        """Maps f(column, lr, seed, ...) over rates and seeds."""

        def mapped(columns, *rest):
            over_seeds = jax.vmap(
                lambda column, lr, seed: f(column, lr, seed, *rest), (0, None, 0)
            )
            over_rates = jax.vmap(over_seeds, (0, 0, None))
            return over_rates(columns, self._lr, self._seeds)

        return mapped

    def _start(self) -> Column:
        """The same weights for every rate of a seed."""

        def params(_, lr, seed):
            points = jnp.zeros((1, self.problem.dimension), self.config.dtype)
            return self.network.init(jax.random.key(seed), points)

        shape = (len(self.config.lr), self.config.seeds)
        nothing = jnp.zeros(shape)
        weights = jax.jit(self._over_columns(params))(nothing)
        running = jnp.full(shape, -1)
        return self._begin(self.phases[0], Column(weights, (), running))

    def _begin(self, phase: Phase, columns: Column) -> Column:
        init = self._over_columns(lambda params, lr, seed: phase.init(params, lr))
        return columns._replace(state=jax.jit(init)(columns.params))

    def _advance(self, phase: Phase, length: int) -> Any:
        key = (phase.first, length)
        if key not in self._compiled:
            start = time.perf_counter()

            def advance(columns, first):
                over = self._over_columns(functools.partial(self._chunk, phase, length))
                return over(columns, first)

            lowered = jax.jit(advance, donate_argnums=0).lower(
                self.columns, jnp.asarray(self.step)
            )
            self._compiled[key] = lowered.compile()
            self.compile_seconds += time.perf_counter() - start
        return self._compiled[key]

    def _chunk(self, phase, length, column, lr, seed, first):
        def step(carry, index):
            column, _, _ = carry
            params, state, loss, grads = phase.update(column, lr, seed, index)
            good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(params))
            stopped_at = jnp.where(
                (column.stopped_at < 0) & ~good, index, column.stopped_at
            )
            new = Column(params, state, stopped_at)
            # A column that is not finite keeps what it had, and the others go on.
            kept = jax.tree.map(
                lambda a, b: jnp.where(stopped_at < 0, a, b), new, column
            )
            kept = kept._replace(stopped_at=stopped_at)
            scales = sg.layer_scales(grads, stack_axis=stack_axis)
            return (kept, loss, scales), None

        shapes = jax.eval_shape(
            lambda column: phase.update(column, lr, seed, first)[2:], column
        )
        loss, grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        carry = (column, loss, sg.layer_scales(grads, stack_axis=stack_axis))
        (column, loss, scales), _ = jax.lax.scan(
            step, carry, first + jnp.arange(length)
        )
        return column, Report(loss, self._error(column.params), scales)

    def _error(self, params: Any) -> jax.Array:
        u = values(self.network, params, self._grid)
        return jnp.linalg.norm(u - self._exact) / jnp.linalg.norm(self._exact)


def field(config: Config, params: Any, points: np.ndarray) -> np.ndarray:
    """The network's u at points of shape (n, dimension), in float64 for NumPy."""
    network = network_of(config)
    u = jax.jit(functools.partial(values, network))
    return np.asarray(u(params, jnp.asarray(points, config.dtype)), np.float64)
