"""Deep physics-informed networks: train, evaluate, plot and compare.

python -m examples.pinn train --problem poisson --depth 64 --out runs/poisson
python -m examples.pinn --help
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import jax
import numpy as np
import tyro
from rich.console import Console

from examples.common import progress
from examples.common.runs import Recording, Run, RunError, check_writable
from examples.pinn import config as configuration
from examples.pinn import report
from examples.pinn.config import Config

if TYPE_CHECKING:
    from examples.pinn.train import Program


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
class Plot:
    """Figures of a run: field, curves and layer scales, into its folder."""

    run: Path
    """Folder of the run."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """One table and one figure of several runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs."""
    out: Path = Path("comparison.png")
    """File for the figure."""


@dataclasses.dataclass(frozen=True)
class Study:
    """Train a named set of runs, those that are not finished yet."""

    out: Path
    """Folder for the folders of the runs."""
    only: str = ""
    """Take runs with this text in their name only, such as "depth64-adam"."""
    steps: int = 2000
    """Steps of each run."""
    seeds: int = 5
    """Seeds of each run."""


Command = (
    Annotated[Config, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Study, tyro.conf.subcommand("depth-study")]
)


def set_numerics(config: Config) -> None:
    """Precision, for the whole process: before the first array is made."""
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)


def train(config: Config, console: Console) -> None:
    config.check()
    set_numerics(config)
    from examples.pinn.train import Program

    with Recording(config.out, config.settings(), resume=config.resume) as run:
        program = Program(config)
        found = run.resume(program.template)
        if found is not None:
            program.restore(*found)
            console.print(f"Resumed at step {program.step}.")
        _train(program, run, console)
        last = list(run.history())[-1]
        run.finish(
            {
                "relative_l2": last["relative_l2"],
                "loss": last["loss"],
                "stopped_at_step": program.columns.stopped_at,
                "steps_per_second": program.steps_per_second,
                "compile_seconds": program.compile_seconds,
            }
        )
    console.print(report.table([Run(config.out)]))
    console.print(f"Run: {config.out}", soft_wrap=True)


def _train(program: "Program", run: Recording, console: Console) -> None:
    config = program.config
    known = program.stopped()
    with progress.bar(console) as bar:
        task = bar.add_task(config.problem, total=program.total_steps, now="compiling")
        bar.update(task, completed=program.step)
        before = program.step
        for step, now in program.run():
            run.append({"step": step, **now._asdict()})
            shown = progress.numbers(best_rate(np.asarray(now.relative_l2)))
            bar.update(task, completed=step, now=f"error {shown}")
            for (rate, seed), at in program.stopped().items() - known.items():
                bar.console.print(
                    f"Learning rate {rate:g}, seed {seed}: the loss was not finite at "
                    f"step {at}; it stops here."
                )
            known = program.stopped()
            every = config.checkpoint_every
            if step // every > before // every or step == program.total_steps:
                run.save(step, program.columns)
            before = step


def best_rate(errors: np.ndarray) -> np.ndarray:
    """The errors of each seed at the rate with the lowest median."""
    return errors[report.best_rate(errors)]


def evaluate(options: Evaluate) -> None:
    run, config = load(options.run)
    set_numerics(config)
    from examples.pinn.problems import PROBLEMS
    from examples.pinn.train import field

    dimension = PROBLEMS[config.problem].dimension
    points = read_points(options.points, dimension)
    params = report.params_of(run, config, options.lr_index, options.seed)
    check_writable(options.out.absolute().parent)
    with options.out.open("wb") as file:
        np.save(file, field(config, params, points))


def read_points(path: Path, dimension: int) -> np.ndarray:
    try:
        points = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"cannot read points from {path}: {error}") from None
    if points.ndim != 2 or points.shape[1] != dimension:
        raise RunError(
            f"{path} must hold an array of shape (n, {dimension}), got {points.shape}."
        )
    if not np.issubdtype(points.dtype, np.number) or not np.isfinite(points).all():
        raise RunError(f"{path} must hold finite numbers.")
    return points


def load(path: Path) -> tuple[Run, Config]:
    """A run and its configuration."""
    run = Run(path)
    settings = run.settings
    settings["lr"] = tuple(settings["lr"])
    return run, Config(out=path, **settings)


def plot(options: Plot, console: Console) -> None:
    run, config = load(options.run)
    set_numerics(config)
    for path in report.draw(run, config):
        console.print(f"Figure: {path}")


def compare(options: Compare, console: Console) -> None:
    if not options.runs:
        raise RunError("compare needs the folders of one run or more.")
    runs = [Run(path) for path in options.runs]
    console.print(report.table(runs))
    report.draw_comparison(runs, options.out)
    console.print(f"Figure: {options.out}")


def study(options: Study, console: Console) -> None:
    runs = configuration.depth_study(
        options.out, steps=options.steps, seeds=options.seeds, resume=True
    )
    chosen = {name: c for name, c in runs.items() if options.only in name}
    if not chosen:
        raise RunError(f"no run of the study has {options.only!r} in its name.")
    for i, (name, config) in enumerate(chosen.items()):
        if (config.out / "metrics.json").exists():
            continue
        console.rule(f"{name} ({i + 1} of {len(chosen)})")
        train(config, console)
    console.print(report.table([Run(c.out) for c in chosen.values()]))


def main() -> int:
    console = Console()
    command = tyro.cli(Command, description=__doc__)
    try:
        match command:
            case Config() as config:
                train(config, console)
            case Evaluate() as options:
                evaluate(options)
            case Plot() as options:
                plot(options, console)
            case Compare() as options:
                compare(options, console)
            case Study() as options:
                study(options, console)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
