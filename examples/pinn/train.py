"""Training: all learning rates and seeds as columns of one jitted program."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import stablegrad_optax as sg
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import Objective, network_of, values
from examples.pinn.phases import FirstOrder, Lbfgs, Phase
from examples.pinn.problems import PROBLEMS


class Column(NamedTuple):
    """One learning rate and seed; in a run these have leading axes (rates, seeds)."""

    params: Any
    state: Any
    stopped_at: jax.Array
    """The step at which loss or weights were no longer finite, or -1."""


class Report(NamedTuple):
    """Where all columns stand after some steps."""

    loss: jax.Array
    relative_l2: jax.Array
    layer_scales: dict[str, jax.Array]


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
        self._compiled: dict[Phase, Any] = {}
        self._lr = jnp.asarray(config.lr, config.dtype)
        self._seeds = jnp.arange(config.seeds)
        grid = self.problem.grid().reshape(-1, self.problem.dimension)
        self._grid = jnp.asarray(grid, config.dtype)
        self._exact = jnp.asarray(self.problem.exact(grid), config.dtype)
        self.columns = self._start()

    def run(self) -> Iterator[tuple[int, Report]]:
        """Advances chunk by chunk; yields the number of steps done and a report."""
        while not self.finished:
            phase = self._phase(self.step)
            if self.step == phase.first and self.step > 0:
                self.columns = self._begin(phase, self.columns)
            length = min(self.config.chunk, phase.end - self.step)
            advance = self._advance(phase)
            start = time.perf_counter()
            self.columns, report = advance(
                self.columns, np.int32(self.step), np.int32(self.step + length)
            )
            report = jax.device_get(report)
            self.run_seconds += time.perf_counter() - start
            self.step += length
            self.steps_made += length
            yield self.step, report

    def restore(self, step: int, columns: Column) -> None:
        """Goes on from a checkpoint."""
        self.step, self.columns = step, jax.device_put(columns)

    def params(self, rate: int, seed: int) -> Any:
        """The parameters of one column."""
        return jax.tree.map(lambda x: x[rate, seed], self.columns.params)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or no column is left to make them."""
        return self.step >= self.total_steps or bool(self.stopped_at.min() >= 0)

    @property
    def stopped_at(self) -> np.ndarray:
        """Of each column, shape (rates, seeds); -1 where it goes on."""
        return np.asarray(self.columns.stopped_at)

    @property
    def steps_per_second(self) -> float | None:
        """Of the steps that this process has made, compilation not counted."""
        return self.steps_made / self.run_seconds if self.steps_made else None

    def template(self, step: int) -> Column:
        """The form of the columns after some steps, for reading a checkpoint.

        At the boundary of two phases it is that of the phase that ends there.
        """
        phase = self._phase(max(step - 1, 0))
        return jax.eval_shape(functools.partial(self._begin, phase), self.columns)

    def _phase(self, step: int) -> Phase:
        """The phase in which step number `step`, counted from zero, is made."""
        return next(phase for phase in self.phases if step < phase.end)

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
        running = jnp.full(shape, -1, jnp.int32)
        return self._begin(self.phases[0], Column(weights, (), running))

    def _begin(self, phase: Phase, columns: Column) -> Column:
        init = self._over_columns(lambda params, lr, seed: phase.init(params, lr))
        return columns._replace(state=jax.jit(init)(columns.params))

    def _advance(self, phase: Phase) -> Any:
        """(columns, first, end) -> columns, report: compiled once for all lengths."""
        if phase not in self._compiled:
            start = time.perf_counter()
            advance = self._over_columns(functools.partial(self._chunk, phase))
            bounds = np.int32(0), np.int32(1)
            lowered = jax.jit(advance, donate_argnums=0).lower(self.columns, *bounds)
            self._compiled[phase] = lowered.compile()
            self.compile_seconds += time.perf_counter() - start
        return self._compiled[phase]

    def _chunk(self, phase: Phase, column: Column, lr, seed, first, end):
        def step(index, carry):
            column, _, _ = carry
            new = phase.update(column.params, column.state, lr, seed, index)
            good = jnp.isfinite(new.loss) & _all_finite(new.params)
            ends_here = (column.stopped_at < 0) & ~good
            stopped_at = jnp.where(ends_here, index, column.stopped_at)
            # A column that is not finite keeps what it had, and the others go on.
            params, state = jax.tree.map(
                lambda a, b: jnp.where(stopped_at < 0, a, b),
                (new.params, new.state),
                (column.params, column.state),
            )
            return Column(params, state, stopped_at), new.loss, new.grads

        shapes = jax.eval_shape(
            lambda column: phase.update(column.params, column.state, lr, seed, first),
            column,
        )
        loss, grads = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), (shapes.loss, shapes.grads)
        )
        column, loss, grads = jax.lax.fori_loop(first, end, step, (column, loss, grads))
        scales = sg.layer_scales(grads, stack_axis=stack_axis)
        return column, Report(loss, self._error(column.params), scales)

    def _error(self, params: Any) -> jax.Array:
        u = values(self.network, params, self._grid)
        return jnp.linalg.norm(u - self._exact) / jnp.linalg.norm(self._exact)


def _all_finite(tree: Any) -> jax.Array:
    finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
    return jnp.stack(finite).all()


def field(config: Config, params: Any, points: np.ndarray) -> np.ndarray:
    """The network's u at points of shape (n, dimension), in float64 for NumPy."""
    network = network_of(config)
    u = jax.jit(functools.partial(values, network))
    return np.asarray(u(params, jnp.asarray(points, config.dtype)), np.float64)
