"""A run: all learning rates and seeds as columns of one jitted program."""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from examples.common import progress
from examples.common.runs import DivergedError, Recording, Run, RunError
from examples.pinn import solved, units
from examples.pinn.columns import Column, assess, columns_of, template
from examples.pinn.config import Config
from examples.pinn.objective import Objective
from examples.pinn.problems import is_own, own
from examples.pinn.programs import compiled, costs, seconds_of_step
from examples.pinn.step import Phase, phases_of
from examples.pinn.studies import SCORE, best_rate, final_scores

RESULTS = (SCORE, "loss", "errors", "losses", "shares", "unknowns")
"""What metrics.json takes from the last line of the history."""

BY_ZERO = (
    "Zero satisfies the equation and every condition. One may be missing, or on the "
    "wrong part of the boundary."
)


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
        found = run.resume(functools.partial(template, objective, phases))
        if found is None:
            step, columns = 0, jax.jit(lambda: columns_of(objective))()
        else:
            step, columns = found[0], jax.device_put(found[1])
            console.print(f"Resumed at step {step}.")
        if bars is None:
            console.print(describe(objective))
        name = objective.problem.name if bars is None else run.name
        with progress.Steps(console, name, phases[-1].end, step, bars) as bar:
            columns, speeds = _advance(objective, phases, step, columns, run, bar)
        *_, last = run.history()
        stopped_at = _by_rate(config, columns.stopped_at)
        results = {name: last[name] for name in RESULTS if name in last}
        run.finish(lambda: results | speeds | {"stopped_at_step": stopped_at})
        if notice := solved.notice(config, last["shares"], stopped_at):
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


def describe(objective: Objective) -> str:
    """What is trained, and what may be a mistake, a line each."""
    config, problem = objective.config, objective.problem
    points = f"{config.interior_points} points inside"
    if problem.conditions:
        points += f", {config.condition_points} on each condition"
    steps = f"{config.all_steps} steps"
    columns = f"learning rates {', '.join(f'{lr:g}' for lr in config.lr)}"
    if len(config.lr) == 1:
        columns = f"learning rate {config.lr[0]:g}"
    columns += f", {config.seeds} seed" + "s" * (config.seeds > 1)
    lines = [
        f"{problem.name}: {config.depth} layers of {config.width}, {points}, {steps}, "
        f"{columns}.",
        units.describe(objective.scales, objective.fields_without_scale),
        *problem.doubts(),
        BY_ZERO if solved.is_solved_by_zero(objective) else None,
        f"Not used: {'; '.join(config.unused())}." if config.unused() else None,
    ]
    return "\n".join(filter(None, lines))


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
    start = time.perf_counter()
    phases = [phase for phase in phases if step < phase.end]
    programs = [compiled(phase, columns) for phase in phases]
    of_columns = jax.jit(jax.vmap(functools.partial(assess, objective)))
    assessment = of_columns.lower(columns.params, columns.seed).compile()
    initial = columns if step == 0 else jax.jit(lambda: columns_of(objective))()
    at_start = jax.device_get(assessment(initial.params, initial.seed)["squares"])
    compiling, running = time.perf_counter() - start, 0.0
    if phases:  # a run may have been killed after its last step
        seconds = [seconds_of_step(program, columns) for program in programs]
        left = costs(phases, seconds, step, phases[-1].end)
        text = ", then ".join(
            f"{_duration(cost)} of {phase.optimizer}"
            for phase, cost in zip(phases, left, strict=True)
        )
        bar.console.print(f"{run.name}: {text}.")
        bar.weigh(lambda steps: sum(costs(phases, seconds, 0, steps)))
    for phase, begin, advance in programs:
        if step == phase.first:
            columns = begin(columns)
        while step < phase.end and jnp.min(columns.stopped_at) < 0:
            start = time.perf_counter()
            before, step = step, min(step + config.chunk, phase.end)
            columns, report = advance(columns, np.int32(before), np.int32(step))
            report |= assessment(columns.params, columns.seed)
            # Waits until the steps are done.
            report = jax.device_get(report)
            report["shares"] = solved.shares(at_start, report.pop("squares"))
            report = jax.tree.map(functools.partial(_by_rate, config), report)
            running += time.perf_counter() - start
            stopped_at = _by_rate(config, columns.stopped_at)
            for rate, seed in np.argwhere(stopped_at >= before):
                bar.console.print(
                    f"Learning rate {config.lr[rate]:g}, seed {seed}: no longer finite "
                    f"at step {stopped_at[rate, seed]}; it stops here."
                )
            if report["errors"]:
                report[SCORE] = np.max([*report["errors"].values()], axis=0)
            run.append(
                {"step": step}
                | {
                    name: x if name in RESULTS else _few(x)
                    for name, x in report.items()
                }
            )
            bar.show(step, _at_best_rate(report, stopped_at))
            half, is_last = (phase.first + phase.end) // 2, phase is phases[-1]
            notice = solved.notice(config, report["shares"], stopped_at)
            # An optimizer that is still to come may solve what this one does not.
            if notice and is_last and before < half <= step:
                bar.console.print(
                    f"{run.name}, half of the steps of {phase.optimizer} done. {notice}"
                )
            every, is_end = config.checkpoint_every, step == phases[-1].end
            if step // every > before // every or is_end or stopped_at.min() >= 0:
                run.save(step, columns)
    return columns, {
        "steps_per_second": (step - first) / running if running else None,
        "compile_seconds": compiling,
    }


def _at_best_rate(report: Mapping[str, Any], stopped_at: np.ndarray) -> str:
    """Error, or loss if the solution is not known, and coefficients of each seed."""
    scores = report.get(SCORE, report["loss"])
    best = best_rate(np.where(stopped_at < 0, scores, np.inf))
    name = "error" if SCORE in report else "loss"
    texts = [f"{name} {' '.join(f'{score:.1e}' for score in scores[best])}"]
    for name, x in report["unknowns"].items():
        texts.append(f"{name} {' '.join(f'{estimate:.4g}' for estimate in x[best])}")
    return ", ".join(texts)


def _by_rate(config: Config, x: Any) -> np.ndarray:
    """Splits the axis of columns into rates and seeds."""
    return np.reshape(x, (len(config.lr), config.seeds, *x.shape[1:]))


def _duration(seconds: float) -> str:
    """About how long, in words."""
    if seconds < 90:
        return f"about {math.ceil(seconds)} s"
    return f"about {round(seconds / 60)} min"


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
    found = run.restore(functools.partial(template, objective, phases_of(objective)))
    if found is None:
        raise RunError(f"{run.path} has no checkpoint.")
    params = jax.tree.map(lambda x: x[rate * config.seeds + seed], found[1].params)
    network = objective.network
    values = jax.jit(network.apply)(params, jnp.asarray(points, config.dtype))
    return {name: np.asarray(values[name], np.float64) for name in network.fields}
