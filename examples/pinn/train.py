"""Training: all learning rates and seeds as columns of one jitted program."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import stablegrad_optax as sg
from examples.common import optimizers
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import (
    UNKNOWNS,
    Objective,
    initial_params,
    network_of,
    unknowns_of,
    weighted_sum,
)


class Found(NamedTuple):
    """What a step has found out."""

    loss: jax.Array
    gradient: Any
    """What the base optimizer and its scale control were given."""
    losses: dict[str, jax.Array]
    """The mean square of each term, without weights; none from L-BFGS."""
    term_grads: dict[str, Any]
    term_weights: dict[str, jax.Array]
    """By what the gradients of the terms were multiplied."""


class Phase(NamedTuple):
    """Training by one optimizer, from step `first` to step `end` of the run."""

    first: int
    end: int
    optimizer: Callable[[Any], optax.GradientTransformationExtraArgs]
    """Maps the learning rate to the optimizer."""
    update: Callable[..., tuple[Any, Any, Found]]
    """Maps params, optimizer state, learning rate, seed and step of the run to new
    params and state, and to what was found on the way."""


def first_order(objective: Objective) -> Phase:
    """The base optimizer and its scale control, behind the sum of the terms."""
    config, weights = objective.config, objective.weights
    if config.terms == "balanced":
        one_gradient = sg.balance_terms(tuple(weights), weights)
    else:
        one_gradient = optax.stateless(lambda grads, _: weighted_sum(grads, weights))

    def optimizer(lr):
        return optax.chain(one_gradient, optimizer_of(config, lr))

    def update(params, state, lr, seed, step):
        key = jax.random.key(1000 + seed)
        key = jax.random.fold_in(key, step if config.points == "resampled" else 0)
        points = objective.sample(key, config.interior_points)
        (losses, predictions), grads = sg.value_and_grad_of_terms(
            objective.terms, has_aux=True
        )(params, points)
        loss, extra = weighted_sum(losses, weights), {"values": losses}
        if config.scale_control == "stablegrad-prediction":

            def of_predictions(predictions):
                losses = objective.losses(predictions, points, unknowns_of(params))
                return weighted_sum(losses, weights)

            slope = jax.grad(of_predictions)(predictions)
            extra["reference"] = sg.reference_scale(slope)
        updates, state = optimizer(lr).update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
        if config.terms == "balanced":
            used = state[0].weights
        else:
            used = jax.tree.map(jnp.float32, weights)
        found = Found(loss, weighted_sum(grads, used), losses, grads, used)
        return params, state, found

    return Phase(0, config.steps, optimizer, update)


def lbfgs(objective: Objective) -> Phase:
    """L-BFGS with a zoom line search, on fixed points."""
    config = objective.config
    tx = optax.lbfgs()

    def update(params, state, lr, seed, step):
        points = objective.sample(jax.random.key(2000 + seed), config.lbfgs_points)

        def loss(params):
            return objective.loss(params, points)

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


class Column(NamedTuple):
    """The training of one learning rate and seed."""

    lr: jax.Array
    seed: jax.Array
    params: Any
    state: Any
    stopped_at: jax.Array
    """The step at which loss or weights were no longer finite, or -1."""


class Program:
    """The jitted functions of a run, and the columns that they advance together.

    The leaves of `columns` have a leading axis: the seeds of the first rate, then those
    of the next.
    """

    def __init__(self, config: Config):
        self.config = config
        self.objective = Objective(config)
        both = first_order(self.objective), lbfgs(self.objective)
        self.phases = [phase for phase in both if phase.end > phase.first]
        self.total_steps = config.steps + config.lbfgs_steps
        self.step = self.steps_made = 0
        self.compile_seconds = self.run_seconds = 0.0
        # Shapes, until training starts or continues.
        self.columns: Column = jax.eval_shape(self._start)

    def run(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Advances chunk by chunk; yields the number of steps done and a report.

        The arrays of a report have leading axes for rates and seeds.
        """
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

        def chunk(column, first, end):
            return self._chunk(phase, column, first, end)

        start = time.perf_counter()
        advance = jax.jit(jax.vmap(chunk, (0, None, None)), donate_argnums=0)
        compiled = advance.lower(self.columns, np.int32(0), np.int32(1)).compile()
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
        names = sorted(found.term_grads)  # as the leaves of a dict are
        cosines = sg.term_alignment(found.term_grads) if names else ()
        return column, {
            "loss": found.loss,
            "errors": self.objective.errors(column.params),
            "unknowns": unknowns_of(column.params),
            "layer_scales": sg.layer_scales(found.gradient, stack_axis=stack_axis),
            "losses": found.losses,
            "term_scales": sg.term_scales(found.term_grads),
            "term_alignment": {
                name: dict(zip(names, row, strict=True))
                for name, row in zip(names, cosines, strict=True)
            },
            "term_weights": found.term_weights,
        }


def _begin(phase: Phase) -> Callable[[Column], Column]:
    """Gives all columns the optimizer state of a phase."""

    def begin(column):
        return column._replace(state=phase.optimizer(column.lr).init(column.params))

    return jax.vmap(begin)


def fields(config: Config, params: Any, points: np.ndarray) -> dict[str, np.ndarray]:
    """The network's fields at points of shape (n, dimension), in float64 for NumPy."""
    network = network_of(config)
    found = jax.jit(network.apply)(params, jnp.asarray(points, config.dtype))
    return {name: np.asarray(found[name], np.float64) for name in network.fields}
