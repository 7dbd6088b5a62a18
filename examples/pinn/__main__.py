"""Deep physics-informed networks: train, evaluate, plot, study, collect and compare.

python -m examples.pinn train --problem poisson --depth 64 --out runs/poisson
python -m examples.pinn --help
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import matplotlib
import numpy as np
import tyro
from rich.console import Console

from examples.common import command_line
from examples.common.comparison import Collect, Compare, Plot
from examples.common.runs import RunError
from examples.pinn import demo, figures, studies
from examples.pinn.config import Config
from examples.pinn.demo import Demo
from examples.pinn.run import (
    DivergedError,
    finite_rate,
    load,
    params_of,
    set_numerics,
    train,
)
from examples.pinn.scores import JUDGE
from examples.pinn.train import fields


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """The field of a finished run at points of your own."""

    run: Path
    """Folder of the run."""
    points: Path
    """NumPy or CSV file with an array of shape (n, dimension)."""
    out: Path
    """.npy file for the field, an array of shape (n,); .npz, by name, for several."""
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
    """Only the runs whose name this regular expression is found in: depth64-adam."""
    depths: tuple[int, ...] | None = None
    """Other depths than those of the set; the options below replace its values too."""
    lr: tuple[float, ...] | None = None
    seeds: int | None = None
    steps: int | None = None
    lbfgs_steps: int | None = None
    dtype: Literal["float32", "float64"] | None = None


Command = (
    Annotated[Config, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
)


def evaluate(options: Evaluate, console: Console) -> None:
    run, config = load(options.run)
    set_numerics(config)
    problem = config.find_problem()
    points = read_points(options.points, problem.dimension)
    suffix = ".npy" if len(problem.fields) == 1 else ".npz"
    if options.out.suffix != suffix or options.out == options.points:
        raise RunError(
            f"--out must be another file than --points and end in {suffix}, got "
            f"{options.out}."
        )
    if outside := np.sum(~np.asarray(problem.domain.contains(points))):
        console.print(f"{outside} of {len(points)} points are outside the domain.")
    rate = finite_rate(run, config, options.lr_index, options.seed)
    found = fields(config, params_of(run, config, rate, options.seed), points)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".npy":
        np.save(options.out, found[problem.fields[0]])
    else:
        np.savez(options.out, allow_pickle=False, **found)
    console.print(
        f"Field: {options.out} (learning rate {config.lr[rate]:g}, seed {options.seed})"
    )


def read_points(path: Path, dimension: int) -> np.ndarray:
    """Points from a NumPy file or a CSV file, checked."""
    wanted = (
        "--points must be a NumPy file, or a CSV file without a header, of finite "
        f"numbers, shape (n, {dimension})"
    )
    try:
        if path.suffix == ".csv":
            points = np.loadtxt(path, delimiter=",", ndmin=2)
        else:
            points = np.asarray(np.load(path, allow_pickle=False), np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise RunError(f"{wanted}, cannot read {path}: {error}") from None
    fits = points.ndim == 2 and points.shape[1] == dimension and len(points)
    if not fits or not np.isfinite(points).all():
        raise RunError(f"{wanted}, got shape {points.shape} in {path}, or NaN or inf.")
    return points


def study(options: Study, console: Console) -> None:
    names = ("lr", "seeds", "steps", "lbfgs_steps", "dtype")
    changes = command_line.given(options, names)
    runs = studies.runs(options.name, options.out, options.depths, changes)
    runs = command_line.checked(runs, options.only)
    for i, (name, config) in enumerate(runs.items()):
        console.rule(f"{name} ({i + 1} of {len(runs)})")
        try:
            train(config, console)
        except DivergedError as error:
            console.print(f"Stopped: {error}")
    console.rule(options.name)
    JUDGE.show(JUDGE.read(config.out for config in runs.values()), console)


def do(command: Command) -> None:
    console = Console(soft_wrap=True)  # paths stay whole
    matplotlib.use("agg")
    match command:
        case Config() as config:
            train(config, console)
            JUDGE.show(JUDGE.read([config.out]), console)
            console.print(f"Run: {config.out}")
        case Evaluate() as options:
            evaluate(options, console)
        case Plot() as options:
            run, config = load(options.run)
            set_numerics(config)
            for path in figures.draw(run, config):
                console.print(f"Figure: {path}")
        case Study() as options:
            study(options, console)
        case Demo() as options:
            demo.run(options, console)
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
