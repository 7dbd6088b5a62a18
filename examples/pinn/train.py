"""A run: all learning rates and seeds as columns of one jitted program."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import stablegrad_optax as sg
from examples.common import optimizers, progress
from examples.common.runs import DivergedError, Recording, Run, RunError
from examples.pinn import trivial
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import (
    UNKNOWNS,
    Objective,
    initial_params,
    unknowns_of,
    weighted_sum,
)
from examples.pinn.problems import is_own, own
from examples.pinn.studies import SCORE, best_rate, final_scores

RESULTS = (SCORE, "loss", "errors", "losses", "shares", "unknowns")
"""What metrics.json takes from the last line of the history."""


# --- What a step does ---


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


def phases_of(objective: Objective) -> list[Phase]:
    """The phases of a run that have steps."""
    both = first_order(objective), lbfgs(objective)
    return [phase for phase in both if phase.end > phase.first]


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
    config, tx = objective.config, optax.lbfgs()

    def update(params, state, lr, seed, step):
        points = objective.sample(jax.random.key(2000 + seed), config.lbfgs_points)
        loss = functools.partial(objective.loss, points=points)
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


# --- Columns, and how they advance ---


class Column(NamedTuple):
    """The training of one learning rate and seed.

    Of several columns the leaves have a leading axis: the seeds of the first rate, then
    those of the next.
    """

    lr: jax.Array
    seed: jax.Array
    params: Any
    state: Any
    stopped_at: jax.Array
    """The step at which loss or weights were no longer finite, or -1."""


def columns_of(config: Config) -> Column:
    """The columns of a run at its beginning, without an optimizer state."""

    def start(lr, seed):
        params = initial_params(config, jax.random.key(seed))
        return Column(lr, seed, params, state=(), stopped_at=jnp.int32(-1))

    rates = jnp.repeat(jnp.asarray(config.lr, config.dtype), config.seeds)
    seeds = jnp.tile(jnp.arange(config.seeds), len(config.lr))
    return jax.vmap(start)(rates, seeds)


def begin(phase: Phase, columns: Column) -> Column:
    """Gives all columns the optimizer state of a phase."""

    def state(lr, params):
        return phase.optimizer(lr).init(params)

    return columns._replace(state=jax.vmap(state)(columns.lr, columns.params))


def template(config: Config, phases: Sequence[Phase], step: int) -> Column:
    """The structure of the columns after some steps, for reading a checkpoint.

    At the boundary of two phases it is that of the phase that ends there.
    """
    phase = next(phase for phase in phases if step <= phase.end)
    return jax.eval_shape(lambda: begin(phase, columns_of(config)))


def advance(
    objective: Objective,
    phase: Phase,
    constant: Mapping[str, float],
    column: Column,
    first: jax.Array,
    end: jax.Array,
) -> tuple[Column, dict[str, Any]]:
    """Steps `first` to `end` of a column, and a report of the last of them.

    `constant` is what each term is for the best constant field.
    """

    def update(column, index):
        return phase.update(column.params, column.state, column.lr, column.seed, index)

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
        return Column(column.lr, column.seed, params, state, stopped_at), found

    *_, found = jax.eval_shape(update, column, first)
    found = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)
    column, found = jax.lax.fori_loop(first, end, step, (column, found))
    points = objective.sample(
        jax.random.key(3000 + column.seed), objective.config.interior_points
    )
    losses, _ = objective.terms(column.params, points)
    names = sorted(found.term_grads)  # as the leaves of a dict are
    cosines = sg.term_alignment(found.term_grads) if names else ()
    return column, {
        "loss": found.loss,
        "errors": objective.errors(column.params),
        "unknowns": unknowns_of(column.params),
        "shares": {name: x / constant[name] for name, x in losses.items()},
        "layer_scales": sg.layer_scales(found.gradient, stack_axis=stack_axis),
        "losses": found.losses,
        "term_scales": sg.term_scales(found.term_grads),
        "term_alignment": {
            name: dict(zip(names, row, strict=True))
            for name, row in zip(names, cosines, strict=True)
        },
        "term_weights": found.term_weights,
    }


# --- A run in its folder ---


def set_numerics(config: Config) -> None:
    """Precision, for the whole process: before the first array is made."""
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)


def train(config: Config, console: Console, bars: progress.Bars | None = None) -> None:
    """Trains to the end; `bars` is the display that the run shares with others."""
    config.check()
    set_numerics(config)
    # Options that do not go together are errors before a folder is made.
    objective = Objective(config)
    phases = phases_of(objective)
    with Recording(config.out, config.settings(), resume=config.resume) as run:
        if is_own(config.problem) and not (config.out / own.KEPT).exists():
            # The run then no longer needs the original.
            source = own.source_of(Path(config.problem))
            (config.out / own.KEPT).write_text(source)
        if run.finished:
            console.print(f"{config.out} is finished already: nothing to do.")
            return
        found = run.resume(functools.partial(template, config, phases))
        if found is None:
            step, columns = 0, jax.jit(lambda: columns_of(config))()
        else:
            step, columns = found[0], jax.device_put(found[1])
            console.print(f"Resumed at step {step}.")
        name = objective.problem.name if bars is None else run.name
        with progress.Steps(console, name, phases[-1].end, step, bars) as bar:
            columns, speeds = _advance(objective, phases, step, columns, run, bar)
        *_, last = run.history()
        stopped_at = _by_rate(config, columns.stopped_at)
        results = {name: last[name] for name in RESULTS if name in last}
        run.finish(lambda: results | speeds | {"stopped_at_step": stopped_at})
        if notice := trivial.notice(config.lr, last["shares"], stopped_at):
            console.print(f"{name}: {notice}")
    if stopped_at.min() >= 0:
        advice = f"Try lower rates than {', '.join(f'{lr:g}' for lr in config.lr)}."
        if stopped_at.max() == 0:
            losses = (f"{name} {np.ravel(x)[0]}" for name, x in last["losses"].items())
            advice = "With the initial weights, the terms of the loss are "
            advice += f"{', '.join(losses)}."
        raise DivergedError(
            f"no learning rate and seed is left: ended at step {last['step']}. {advice}"
        )


def _advance(
    objective: Objective,
    phases: Sequence[Phase],
    step: int,
    columns: Column,
    run: Recording,
    bar: progress.Steps,
) -> tuple[Column, dict[str, float | None]]:
    """Trains to the end, or until all columns have stopped.

    Returns:
      The columns, and how fast this process was.
    """
    config, first = objective.config, step
    constant = trivial.of_best_constant(objective)
    compiling = running = 0.0
    for phase in phases:
        if step == phase.first:
            columns = jax.jit(functools.partial(begin, phase))(columns)
        compiled = None
        while step < phase.end and jnp.min(columns.stopped_at) < 0:
            start = time.perf_counter()
            if compiled is None:
                chunk = functools.partial(advance, objective, phase, constant)
                jitted = jax.jit(jax.vmap(chunk, (0, None, None)), donate_argnums=0)
                compiled = jitted.lower(columns, np.int32(0), np.int32(1)).compile()
                compiling += time.perf_counter() - start
                start = time.perf_counter()
            before, step = step, min(step + config.chunk, phase.end)
            columns, report = compiled(columns, np.int32(before), np.int32(step))
            # Waits until the steps are done.
            report = jax.device_get(report)
            report = jax.tree.map(functools.partial(_by_rate, config), report)
            running += time.perf_counter() - start
            stopped_at = _by_rate(config, columns.stopped_at)
            for rate, seed in np.argwhere(stopped_at >= before):
                bar.console.print(
                    f"Learning rate {config.lr[rate]:g}, seed {seed}: no longer finite "
                    f"at step {stopped_at[rate, seed]}; it stops here."
                )
            scores = report["loss"]
            if report["errors"]:
                scores = report[SCORE] = np.max([*report["errors"].values()], axis=0)
            run.append(
                {"step": step}
                | {
                    name: x if name in RESULTS else _few(x)
                    for name, x in report.items()
                }
            )
            # What matters now, at the rate that is best: a number for each seed.
            best = best_rate(np.where(stopped_at < 0, scores, np.inf))
            now = "error " if report["errors"] else "loss "
            now += " ".join(f"{score:.1e}" for score in scores[best])
            for name, x in report["unknowns"].items():
                now += f", {name} " + " ".join(
                    f"{estimate:.4g}" for estimate in x[best]
                )
            bar.show(step, now)
            half = phases[-1].end // 2
            if before < half <= step and (
                notice := trivial.notice(config.lr, report["shares"], stopped_at)
            ):
                bar.console.print(f"{run.name}, half of the steps done. {notice}")
            every, is_last = config.checkpoint_every, step == phases[-1].end
            if step // every > before // every or is_last or stopped_at.min() >= 0:
                run.save(step, columns)
    return columns, {
        "steps_per_second": (step - first) / running if running else None,
        "compile_seconds": compiling,
    }


def _by_rate(config: Config, x: Any) -> np.ndarray:
    """Splits the axis of columns into rates and seeds."""
    return np.reshape(x, (len(config.lr), config.seeds, *x.shape[1:]))


def _few(values: Any) -> Any:
    """In few digits: in full, scales would be most of a history."""
    rounded = np.vectorize(lambda x: float(f"{x:.4g}"), otypes=[float])
    return jax.tree.map(rounded, values)


# --- Finished runs ---


def load(path: Path) -> tuple[Run, Config]:
    """A finished run and its configuration, whose precision is set."""
    run = Run(path)
    _ = run.metrics
    config = Config.of(path, run.settings)
    set_numerics(config)
    return run, config


def finite_rate(run: Run, config: Config, rate: int | None, seed: int) -> int:
    """The index of a rate, of the best one if it is None.

    Raises RunError if there is no such column, or if it has stopped.
    """
    rate = best_rate(final_scores(run.metrics)) if rate is None else rate
    if rate not in range(len(config.lr)) or seed not in range(config.seeds):
        raise RunError(
            f"--lr-index must be below {len(config.lr)} and --seed below "
            f"{config.seeds}, got {rate} and {seed}."
        )
    if run.metrics["stopped_at_step"][rate][seed] >= 0:
        raise RunError(
            f"learning rate {config.lr[rate]:g}, seed {seed} is no longer finite; "
            "--lr-index and --seed choose others."
        )
    return rate


def fields(run: Run, config: Config, rate: int, seed: int, points: np.ndarray) -> Any:
    """The fields of one column by name, in float64 for NumPy.

    `points` have shape (n, dimension).
    """
    objective = Objective(config)
    found = run.restore(functools.partial(template, config, phases_of(objective)))
    if found is None:
        raise RunError(f"{run.path} has no checkpoint.")
    params = jax.tree.map(lambda x: x[rate * config.seeds + seed], found[1].params)
    network = objective.network
    values = jax.jit(network.apply)(params, jnp.asarray(points, config.dtype))
    return {name: np.asarray(values[name], np.float64) for name in network.fields}
