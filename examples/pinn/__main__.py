"""Deep physics-informed networks: train, evaluate, plot, study, collect and compare.

python -m examples.pinn train --problem poisson --depth 64 --out runs/poisson
python -m examples.pinn --help
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console

from examples.common import command_line
from examples.common.runs import RunError
from examples.pinn import demo, figures, studies
from examples.pinn import train as training
from examples.pinn.config import Config
from examples.pinn.studies import JUDGE


def train(config: Annotated[Config, tyro.conf.arg(name="")]) -> None:
    """Train a deep physics-informed network: all rates and seeds in one program."""
    training.train(config, Console(soft_wrap=True))  # paths stay whole
    JUDGE.show(JUDGE.read([config.out]))
    print(f"Run: {config.out}")


def evaluate(
    run: Path, points: Path, out: Path, lr_index: int | None = None, seed: int = 0
) -> None:
    """The field of a finished run at points of your own.

    Args:
      run: Folder of the run.
      points: NumPy or CSV file with an array of shape (n, dimension).
      out: .npy file for the field, an array of shape (n,); .npz, by name, for several.
      lr_index: Which of the run's learning rates; that with the best median by default.
      seed: Which of the run's seeds.
    """
    finished, config = training.load(run)
    problem = config.find_problem()
    places = read_points(points, problem.dimension)
    suffix = ".npy" if len(problem.fields) == 1 else ".npz"
    if out.suffix != suffix or out == points:
        what = ", ".join(problem.fields)
        raise RunError(
            f"--out must be another file than --points and end in {suffix}, for "
            f"{what}, got {out}."
        )
    if outside := np.sum(~np.asarray(problem.domain.contains(places))):
        print(f"{outside} of {len(places)} points are outside the domain.")
    rate = training.finite_rate(finished, config, lr_index, seed)
    found = training.fields(finished, config, rate, seed, places)
    out.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".npy":
        np.save(out, found[problem.fields[0]])
    else:
        np.savez(out, allow_pickle=False, **found)
    print(f"Field: {out} (learning rate {config.lr[rate]:g}, seed {seed})")


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


def plot(run: Path) -> None:
    """Figures of a run, into its folder.

    Args:
      run: Folder of the run.
    """
    for path in figures.draw(*training.load(run)):
        print(f"Figure: {path}")


def study(
    name: tyro.conf.Positional[studies.StudyName],
    out: Path,
    only: str = "",
    depths: tuple[int, ...] | None = None,
    lr: tuple[float, ...] | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    lbfgs_steps: int | None = None,
    dtype: Literal["float32", "float64"] | None = None,
) -> None:
    """Train a named set of runs, those that are not finished yet.

    Args:
      name: Which set: examples/pinn/studies.py says what is in it.
      out: Folder for the folders of the runs.
      only: Only runs whose name this regular expression is found in: depth64-adam.
      depths: Other depths than those of the set; and so on, for all runs.
    """
    changes = {
        "lr": lr,
        "seeds": seeds,
        "steps": steps,
        "lbfgs_steps": lbfgs_steps,
        "dtype": dtype,
    }
    runs = command_line.checked(studies.runs(name, out, depths, changes), only)
    JUDGE.study(name, runs, training.train)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "plot": plot,
    "study": study,
    "demo": demo.demo,
    "collect": JUDGE.collect,
    "compare": JUDGE.compare,
}


def main(arguments: list[str] | None = None) -> int:
    return command_line.run(
        COMMANDS, arguments, program="python -m examples.pinn", description=__doc__
    )


if __name__ == "__main__":
    sys.exit(main())
