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
from examples.pinn.objective import (
    Objective,
    initial_params,
    network_of,
    unknowns_of,
)
from examples.pinn.phases import Phase, phases


class Column(NamedTuple):
    """The training of one learning rate and seed."""

    lr: jax.Array
    seed: jax.Array
    params: Any
    state: Any
    stopped_at: jax.Array
    """The step at which loss or weights were no longer finite, or -1."""


class Report(NamedTuple):
    """The results of a chunk of steps; in a run with leading axes (rates, seeds)."""

    loss: jax.Array
    errors: dict[str, jax.Array]
    """The relative L2 error of each field whose solution is known."""
    unknowns: dict[str, jax.Array]
    """Estimates of the unknown coefficients."""
    layer_scales: dict[str, jax.Array]
    losses: dict[str, jax.Array]
    """The mean square of each term, without weights."""
    term_scales: dict[str, jax.Array]
    term_alignment: dict[str, dict[str, jax.Array]]
    term_weights: dict[str, jax.Array]
    """By what the gradients of the terms were multiplied."""


class Program:
    """The jitted functions of a run, and the columns that they advance together.

    The leaves of `columns` have a leading axis: the seeds of the first rate, then those
    of the next.
    """

    def __init__(self, config: Config):
        self.config = config
        self.objective = Objective(config)
        self.phases = phases(self.objective)
        self.total_steps = config.steps + config.lbfgs_steps
        self.step = 0
        self.compile_seconds = self.run_seconds = 0.0
        self.steps_made = 0
        # Shapes, until training starts or continues.
        self.columns: Column = jax.eval_shape(self._start)

    def run(self) -> Iterator[tuple[int, Report]]:
        """Advances chunk by chunk; yields the number of steps done and a report."""
        if self.step == 0:
            self.columns = jax.jit(self._start)()
        for phase in self.phases:
            if self.step >= phase.end or self.finished:
                continue
            if self.step == phase.first:
                self.columns = jax.jit(_begin(phase))(self.columns)
            advance = self._compiled(phase)
            while self.step < phase.end and not self.finished:
                start = time.perf_counter()
                end = min(self.step + self.config.chunk, phase.end)
                bounds = np.int32(self.step), np.int32(end)
                self.columns, report = advance(self.columns, *bounds)
                report = jax.tree.map(self._by_rate, jax.device_get(report))
                self.run_seconds += time.perf_counter() - start
                self.steps_made += end - self.step
                self.step = end
                yield self.step, report

    def restore(self, step: int, columns: Column) -> None:
        """Continues from a checkpoint."""
        self.step, self.columns = step, jax.device_put(columns)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or every column has stopped."""
        return self.step >= self.total_steps or bool(self.stopped_at.min() >= 0)

    @property
    def stopped_at(self) -> np.ndarray:
        """Of each column, shape (rates, seeds); -1 for those that have not stopped."""
        return self._by_rate(np.asarray(self.columns.stopped_at))

    @property
    def steps_per_second(self) -> float | None:
        """Of the steps that this process has made, without compilation."""
        return self.steps_made / self.run_seconds if self.steps_made else None

    def template(self, step: int) -> Column:
        """The structure of the columns after some steps, for reading a checkpoint.

        At the boundary of two phases it is that of the phase that ends there.
        """
        phase = next(phase for phase in self.phases if step <= phase.end)
        return jax.eval_shape(_begin(phase), self.columns)

    def _by_rate(self, x: np.ndarray) -> np.ndarray:
        """Splits the axis of columns into rates and seeds."""
        return x.reshape(len(self.config.lr), self.config.seeds, *x.shape[1:])

    def _start(self) -> Column:
        """The columns at the beginning, without an optimizer state."""

        def start(lr, seed):
            params = initial_params(self.config, jax.random.key(seed))
            return Column(lr, seed, params, state=(), stopped_at=jnp.int32(-1))

        config = self.config
        rates = jnp.repeat(jnp.asarray(config.lr, config.dtype), config.seeds)
        seeds = jnp.tile(jnp.arange(config.seeds), len(config.lr))
        return jax.vmap(start)(rates, seeds)

    def _compiled(self, phase: Phase) -> Any:
        """(columns, first, end) -> columns, report: compiled once for all lengths."""
        start = time.perf_counter()
        chunk = functools.partial(self._chunk, phase)
        advance = jax.jit(jax.vmap(chunk, (0, None, None)), donate_argnums=0)
        lowered = advance.lower(self.columns, np.int32(0), np.int32(1))
        compiled = lowered.compile()
        self.compile_seconds += time.perf_counter() - start
        return compiled

    def _chunk(self, phase: Phase, column: Column, first, end):
        def update(column, index):
            return phase.update(
                column.params, column.state, column.lr, column.seed, index
            )

        def step(index, carry):
            column, _ = carry
            old = column.params, column.state
            *new, found = update(column, index)
            finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(new[0])]
            finite.append(jnp.isfinite(found.loss))
            good = jax.tree.reduce(jnp.logical_and, finite)
            stops_here = (column.stopped_at < 0) & ~good
            stopped_at = jnp.where(stops_here, index, column.stopped_at)
            # A stopped column keeps its last values, and the others continue.
            params, state = jax.tree.map(
                lambda new, old: jnp.where(stopped_at < 0, new, old), tuple(new), old
            )
            column = Column(column.lr, column.seed, params, state, stopped_at)
            return column, found

        *_, found = jax.eval_shape(update, column, first)
        found = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)
        column, found = jax.lax.fori_loop(first, end, step, (column, found))
        return column, Report(
            loss=found.loss,
            errors=self.objective.errors(column.params),
            unknowns=unknowns_of(column.params),
            layer_scales=sg.layer_scales(found.gradient, stack_axis=stack_axis),
            losses=found.losses,
            term_scales=sg.term_scales(found.term_grads),
            term_alignment=_alignment(found.term_grads),
            term_weights=found.term_weights,
        )


def _begin(phase: Phase) -> Callable[[Column], Column]:
    """Gives all columns the optimizer state of a phase."""

    def begin(column):
        return column._replace(state=phase.optimizer(column.lr).init(column.params))

    return jax.vmap(begin)


def _alignment(grads: dict[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """The cosines between the gradients of each two terms, by name."""
    if not grads:
        return {}
    names = sorted(grads)  # as the leaves of a dict are
    return {
        name: dict(zip(names, row, strict=True))
        for name, row in zip(names, sg.term_alignment(grads), strict=True)
    }


def fields(config: Config, params: Any, points: np.ndarray) -> dict[str, np.ndarray]:
    """The network's fields at points of shape (n, dimension), in float64 for NumPy."""
    apply = jax.jit(network_of(config).apply)
    found = apply(params, jnp.asarray(points, config.dtype))
    names = config.find_problem().fields
    return {name: np.asarray(found[name], np.float64) for name in names}
