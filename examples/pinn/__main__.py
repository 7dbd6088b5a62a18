"""Deep physics-informed networks: train, evaluate, plot, study, collect and compare.

python -m examples.pinn train --problem poisson --depth 64 --out runs/poisson
python -m examples.pinn --help
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated, Literal

import jax
import matplotlib
import numpy as np
import tyro
from rich.console import Console

from examples.common import command_line, progress, selection
from examples.common.commands import Collect, Compare, Plot
from examples.common.runs import Recording, Run, RunError, check_writable
from examples.pinn import studies
from examples.pinn.config import Config
from examples.pinn.scores import JUDGE


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """The field of a finished run at points of your own."""

    run: Path
    """Folder of the run."""
    points: Path
    """NumPy file with an array of shape (n, dimension)."""
    out: Path
    """NumPy file for u, an array of shape (n,)."""
    lr_index: int | None = None
    """Which of the run's learning rates; the one with the best median by default."""
    seed: int = 0
    """Which of the run's seeds."""


@dataclasses.dataclass(frozen=True)
class Study:
    """Train a named set of runs, those that are not finished yet."""

    name: tyro.conf.Positional[studies.StudyName]
    """Which set: examples/pinn/studies.py says what is in it."""
    out: Path
    """Folder for the folders of the runs."""
    only: str = ""
    """Take runs only in whose name this regular expression is found: depth64-adam."""
    depths: tuple[int, ...] | None = None
    """Other depths than those of the set; so for the options below."""
    lr: tuple[float, ...] | None = None
    seeds: int | None = None
    steps: int | None = None
    lbfgs_steps: int | None = None
    dtype: Literal["float32", "float64"] | None = None

    def runs(self) -> studies.Runs:
        """The runs to be made, by name, all of them checked."""
        names = ("lr", "seeds", "steps", "lbfgs_steps", "dtype")
        changes = selection.given(self, names)
        runs = studies.runs(self.name, self.out, self.depths, changes)
        return selection.checked(runs, self.only)


Command = (
    Annotated[Config, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
)


def set_numerics(config: Config) -> None:
    """Precision, for the whole process: before the first array is made."""
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)


def train(config: Config, console: Console) -> None:
    from examples.pinn.objective import network_of
    from examples.pinn.phases import optimizer_of
    from examples.pinn.train import Program

    config.check()
    set_numerics(config)
    # Whether options go together is found out before a folder is made.
    network_of(config), optimizer_of(config, config.lr[0])
    with Recording(config.out, config.settings(), resume=config.resume) as run:
        if run.finished:
            console.print(
                f"{config.out} is finished already: nothing to do.", soft_wrap=True
            )
        else:
            program = Program(config)
            found = run.resume(program.template)
            if found is not None:
                program.restore(*found)
                console.print(f"Resumed at step {program.step}.")
            _advance(program, run, console)
            run.finish(functools.partial(_results, program, run))


def _advance(program, run: Recording, console: Console) -> None:
    """Trains to the end, and records what happens on the way."""
    config, total = program.config, program.total_steps
    before, running = program.step, program.stopped_at < 0
    with progress.Steps(console, config.problem, total, before) as bar:
        for step, report in program.run():
            scales = jax.tree.map(_few_digits, report.layer_scales)
            run.append({"step": step, **report._replace(layer_scales=scales)._asdict()})
            stopped_at = program.stopped_at
            for rate, seed in np.argwhere(running & (stopped_at >= 0)):
                console.print(
                    f"Learning rate {config.lr[rate]:g}, seed {seed}: no longer finite "
                    f"at step {stopped_at[rate, seed]}; it stops here.",
                    soft_wrap=True,
                )
            running = stopped_at < 0
            errors = np.asarray(report.relative_l2, float)
            errors = np.where(running & np.isfinite(errors), errors, np.inf)
            shown = progress.numbers(errors[JUDGE.measure.best_rate(errors)])
            bar.show(step, f"error {shown}")
            every = config.checkpoint_every
            if step // every > before // every or program.finished:
                run.save(step, program.columns)
            before = step
    if not running.any():
        console.print(f"No learning rate and seed is left: ended at step {before}.")


def _results(program, run: Recording) -> dict:
    *_, last = run.history()
    return {
        "relative_l2": last["relative_l2"],
        "loss": last["loss"],
        "stopped_at_step": program.stopped_at,
        "steps_per_second": program.steps_per_second,
        "compile_seconds": program.compile_seconds,
    }


def _few_digits(values: np.ndarray) -> list:
    """Scales are for figures: in full they would be most of a history."""
    return [
        _few_digits(v) if np.ndim(v) else float(f"{v:.4g}") for v in np.asarray(values)
    ]


def evaluate(options: Evaluate) -> None:
    from examples.pinn.problems import PROBLEMS
    from examples.pinn.restore import params_of, read_points
    from examples.pinn.train import field

    run, config = load(options.run)
    set_numerics(config)
    points = read_points(options.points, PROBLEMS[config.problem].dimension)
    if options.out.is_dir():
        raise RunError(f"--out must be a file, got the folder {options.out}.")
    check_writable(options.out.absolute().parent, "--out")
    params = params_of(run, config, options.lr_index, options.seed)
    with options.out.open("wb") as file:
        np.save(file, field(config, params, points))


def load(path: Path) -> tuple[Run, Config]:
    """A finished run and its configuration."""
    run = Run(path)
    _ = run.metrics
    return run, Config.of(path, run.settings)


def plot(options: Plot, console: Console) -> None:
    from examples.pinn import figures

    matplotlib.use("agg")
    run, config = load(options.run)
    set_numerics(config)
    for path in figures.draw(run, config):
        console.print(f"Figure: {path}", soft_wrap=True)


def study(options: Study, console: Console) -> None:
    runs = options.runs()
    for i, (name, config) in enumerate(runs.items()):
        console.rule(f"{name} ({i + 1} of {len(runs)})")
        train(config, console)
    console.rule(options.name)
    JUDGE.show(JUDGE.read(config.out for config in runs.values()), console)


def do(command: Command) -> None:
    console = Console()
    match command:
        case Config() as config:
            train(config, console)
            JUDGE.show(JUDGE.read([config.out]), console)
            console.print(f"Run: {config.out}", soft_wrap=True)
        case Evaluate() as options:
            evaluate(options)
        case Plot() as options:
            plot(options, console)
        case Study() as options:
            study(options, console)
        case Collect() as options:
            JUDGE.collect(options, console)
        case Compare() as options:
            JUDGE.compare(options, console)


def main(arguments: list[str] | None = None) -> int:
    return command_line.run(
        Command,
        do,
        arguments=arguments,
        program="python -m examples.pinn",
        description=__doc__,
    )


if __name__ == "__main__":
    sys.exit(main())
