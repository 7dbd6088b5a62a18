"""A run in its folder: trained, recorded, resumed, and read again."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from examples.common import progress
from examples.common.runs import Recording, Run, RunError, on_first_process
from examples.pinn.config import Config
from examples.pinn.objective import network_of
from examples.pinn.phases import optimizer_of
from examples.pinn.problems import own
from examples.pinn.scores import ERROR, SCORE, final_errors
from examples.pinn.train import Program, Report

RESULTS = (SCORE, "loss", "errors", "losses", "unknowns")
"""What metrics.json takes from the last line of the history."""
TRIVIAL = 1e-10
"""A residual this far below a condition is that of a trivial solution."""


class DivergedError(RunError):
    """No column of a run is left."""

    code = 1


def set_numerics(config: Config) -> None:
    """Precision, for the whole process: before the first array is made."""
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)


def train(config: Config, console: Console, bars: progress.Bars | None = None) -> None:
    """Trains to the end; `bars` is the display that the run shares with others."""
    config.check()
    set_numerics(config)
    # Options that do not go together are errors before a folder is made.
    network_of(config), optimizer_of(config, config.lr[0])
    if config.resume:
        own.check_unchanged(config.problem, config.out)
    with Recording(config.out, config.settings(), resume=config.resume) as run:
        on_first_process(lambda: own.keep(config.problem, config.out))
        if run.finished:
            console.print(f"{config.out} is finished already: nothing to do.")
            return
        for name, outside in config.find_problem().measured_outside().items():
            if outside.any():
                console.print(
                    f"{outside.sum()} of {len(outside)} points of {name} are outside "
                    "the domain."
                )
        program = Program(config)
        found = run.resume(program.template)
        if found is not None:
            program.restore(*found)
            console.print(f"Resumed at step {program.step}.")
        name = program.objective.problem.name if bars is None else run.name
        total, done = program.total_steps, program.step
        with progress.Steps(console, name, total, done, bars) as bar:
            _advance(program, run, bar, console)
        run.finish(functools.partial(_results, program, run))
    _say_how_it_ended(program, run, console)


def _say_how_it_ended(program: Program, run: Recording, console: Console) -> None:
    """Names columns at a trivial solution; DivergedError if no column is left."""
    config = program.config
    *_, last = run.history()
    for rate, seed in at_a_trivial_solution(last["losses"]):
        console.print(
            f"Learning rate {config.lr[rate]:g}, seed {seed}: the residual is zero and "
            "a condition is not, as at u = 0. Try fewer layers or --terms weighted."
        )
    if program.stopped_at.min() >= 0:
        rates = ", ".join(f"{lr:g}" for lr in config.lr)
        advice = f"Try lower rates than {rates}."
        if program.stopped_at.max() == 0 and (terms := _not_finite(last)):
            advice = f"With the initial weights, this is not finite: {terms}."
        raise DivergedError(
            f"no learning rate and seed is left: ended at step {program.step}. {advice}"
        )


def at_a_trivial_solution(losses: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Rates and seeds whose residual is next to nothing beside a condition.

    None where the conditions are met as well, or without a term of that name.
    """
    terms = {name: np.asarray(values, float) for name, values in losses.items()}
    residual = terms.pop("residual", None)
    if residual is None or not terms:
        return []
    worst = np.max(np.stack([*terms.values()]), axis=0)
    found = (residual <= TRIVIAL * worst) & (worst > TRIVIAL)
    return [(int(rate), int(seed)) for rate, seed in np.argwhere(found)]


def _not_finite(entry: Mapping[str, Any]) -> str:
    """The terms whose value or gradient is finite nowhere in a line of the history.

    Columns that stopped at their first step have their initial weights there.
    """

    def nowhere(values: Any) -> bool:
        return not np.isfinite(np.asarray(values, float)).any()

    gradients, losses = entry["term_scales"], entry["losses"]
    found = [f"the value of {name}" for name in losses if nowhere(losses[name])]
    if not found:
        found = [f"the gradient of {n}" for n in gradients if nowhere(gradients[n])]
    if not found and nowhere(entry["loss"]):
        found = ["the loss"]
    return ", ".join(found)


def _advance(program: Program, run: Recording, bar: progress.Steps, console) -> None:
    """Trains to the end, and records what happens on the way."""
    config, before = program.config, program.step
    for step, report in program.run():
        run.append({"step": step, **_entry(report)})
        for rate, seed in np.argwhere(program.stopped_at >= before):
            console.print(
                f"Learning rate {config.lr[rate]:g}, seed {seed}: no longer finite at "
                f"step {program.stopped_at[rate, seed]}; it stops here."
            )
        bar.show(step, _now(report, program.stopped_at))
        every = config.checkpoint_every
        if step // every > before // every or program.finished:
            run.save(step, program.columns)
        before = step


def _entry(report: Report) -> dict[str, Any]:
    """A line of the history: results in full, and what is for figures in few digits."""
    score = {SCORE: worst(report.errors)} if report.errors else {}
    return score | {
        name: values if name in RESULTS else _few_digits(values)
        for name, values in report._asdict().items()
    }


def _now(report: Report, stopped_at: np.ndarray) -> str:
    """What matters now, at the learning rate that is best: a number for each seed."""
    name = "error" if report.errors else "loss"
    values = np.asarray(worst(report.errors) if report.errors else report.loss, float)
    values = np.where(np.isfinite(values) & (stopped_at < 0), values, np.inf)
    best = ERROR.best_rate(values)
    shown = [f"{name} {numbers(values[best])}"]
    for unknown, x in report.unknowns.items():
        shown.append(" ".join([unknown, *(f"{estimate:.4g}" for estimate in x[best])]))
    return ", ".join(shown)


def numbers(values: np.ndarray) -> str:
    """A few numbers in little space; "-" for what is not finite."""
    return " ".join(f"{v:.1e}" if np.isfinite(v) else "-" for v in np.ravel(values))


def worst(errors: Mapping[str, Any]) -> np.ndarray:
    """The largest of the fields' errors."""
    return np.max(np.stack([*errors.values()]), axis=0)


def _results(program: Program, run: Recording) -> dict:
    *_, last = run.history()
    return {
        **{name: last[name] for name in RESULTS if name in last},
        "stopped_at_step": program.stopped_at,
        "steps_per_second": program.steps_per_second,
        "compile_seconds": program.compile_seconds,
    }


def _few_digits(values: Any) -> Any:
    """Scales are for figures; in full they would be most of a history."""
    rounded = np.vectorize(lambda x: float(f"{x:.4g}"), otypes=[float])
    return jax.tree.map(rounded, values)


def load(path: Path) -> tuple[Run, Config]:
    """A finished run and its configuration."""
    run = Run(path)
    _ = run.metrics
    return run, Config.of(path, run.settings)


def finite_rate(run: Run, config: Config, rate: int | None, seed: int) -> int:
    """The index of a rate, of the best one if it is None.

    Raises RunError if there is no such column, or if it has stopped.
    """
    errors = final_errors(run.metrics)
    rate = ERROR.best_rate(errors) if rate is None else rate
    for option, value, number in (
        ("--lr-index", rate, errors.shape[0]),
        ("--seed", seed, errors.shape[1]),
    ):
        if not 0 <= value < number:
            raise RunError(f"{option} must be from 0 to {number - 1}, got {value}.")
    stopped_at = np.asarray(run.metrics["stopped_at_step"])
    if stopped_at[rate, seed] >= 0:
        others = [
            f"--lr-index {other} --seed {other_seed} did not stop."
            for other, other_seed in np.argwhere(stopped_at < 0)
        ]
        raise RunError(
            f"learning rate {config.lr[rate]:g}, seed {seed} stopped at step "
            f"{stopped_at[rate, seed]}: no longer finite. "
            + (others[0] if others else "So did all others.")
        )
    return rate


def params_of(run: Run, config: Config, rate: int, seed: int) -> Any:
    """The parameters of one column."""
    program = Program(config)
    found = run.restore(program.template)
    if found is None:
        raise RunError(f"{run.path} has no checkpoint.")
    _, columns = found
    return jax.tree.map(lambda x: x[rate * config.seeds + seed], columns.params)
