"""A run in its folder: trained, recorded, resumed, and read again."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from examples.common import progress
from examples.common.runs import Recording, Run, RunError
from examples.pinn.config import Config
from examples.pinn.objective import network_of
from examples.pinn.problems import is_own, own
from examples.pinn.scores import SCORE, best_rate, final_scores
from examples.pinn.train import Program

RESULTS = (SCORE, "loss", "errors", "losses", "unknowns")
"""What metrics.json takes from the last line of the history."""


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
    network_of(config)
    with Recording(config.out, config.settings(), resume=config.resume) as run:
        if is_own(config.problem) and not (config.out / own.KEPT).exists():
            # The run then no longer needs the original.
            source = own.source_of(Path(config.problem))
            (config.out / own.KEPT).write_text(source)
        if run.finished:
            console.print(f"{config.out} is finished already: nothing to do.")
            return
        program = Program(config)
        found = run.resume(program.template)
        if found is not None:
            program.restore(*found)
            console.print(f"Resumed at step {program.step}.")
        name = program.objective.problem.name if bars is None else run.name
        total, done = program.total_steps, program.step
        with progress.Steps(console, name, total, done, bars) as bar:
            _advance(program, run, bar, console)
        *_, last = run.history()
        run.finish(
            lambda: {
                **{name: last[name] for name in RESULTS if name in last},
                "stopped_at_step": program.stopped_at,
                "steps_per_second": program.steps_per_second,
                "compile_seconds": program.compile_seconds,
            }
        )
    if program.stopped_at.min() >= 0:
        advice = f"Try lower rates than {', '.join(f'{lr:g}' for lr in config.lr)}."
        if program.stopped_at.max() == 0:
            losses = ", ".join(
                f"{k} {np.ravel(v)[0]}" for k, v in last["losses"].items()
            )
            advice = f"With the initial weights, the terms of the loss are {losses}."
        raise DivergedError(
            f"no learning rate and seed is left: ended at step {program.step}. {advice}"
        )


def _advance(program: Program, run: Recording, bar: progress.Steps, console) -> None:
    """Trains to the end, and records what happens on the way."""
    config, before = program.config, program.step
    for step, report in program.run():
        errors, losses = report["errors"], report["loss"]
        worst = np.max(np.stack([*errors.values()]), axis=0) if errors else None
        entry = {name: x if name in RESULTS else _few(x) for name, x in report.items()}
        run.append({"step": step} | ({SCORE: worst} if errors else {}) | entry)
        for rate, seed in np.argwhere(program.stopped_at >= before):
            console.print(
                f"Learning rate {config.lr[rate]:g}, seed {seed}: no longer finite at "
                f"step {program.stopped_at[rate, seed]}; it stops here."
            )
        # What matters now, at the rate that is best: a number for each seed.
        values = np.asarray(losses if worst is None else worst, float)
        values = np.where(program.stopped_at < 0, values, np.inf)
        best = best_rate(values)
        now = "loss" if worst is None else "error"
        now = " ".join([now, *(f"{value:.1e}" for value in values[best])])
        for name, x in report["unknowns"].items():
            now += f", {name} " + " ".join(f"{estimate:.4g}" for estimate in x[best])
        bar.show(step, now)
        every = config.checkpoint_every
        if step // every > before // every or program.finished:
            run.save(step, program.columns)
        before = step


def _few(values: Any) -> Any:
    """In few digits: in full, scales would be most of a history."""
    rounded = np.vectorize(lambda x: float(f"{x:.4g}"), otypes=[float])
    return jax.tree.map(rounded, values)


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


def params_of(run: Run, config: Config, rate: int, seed: int) -> Any:
    """The parameters of one column."""
    program = Program(config)
    found = run.restore(program.template)
    if found is None:
        raise RunError(f"{run.path} has no checkpoint.")
    _, columns = found
    return jax.tree.map(lambda x: x[rate * config.seeds + seed], columns.params)
