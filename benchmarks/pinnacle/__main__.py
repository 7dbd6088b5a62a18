"""Problems of PINNacle in one setting without weights, beside its published errors.

python -m benchmarks.pinnacle --reference FOLDER --runs FOLDER --out FILE.json

FOLDER holds the published table and the reference data. Each problem is trained by
examples.pinn with one setting, at the points of CASES. The control is that of the
paper: Adam, every weight 1. Runs that are finished are kept.
"""

import csv
import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rich
from rich.console import Console
from rich.table import Table

from benchmarks import common
from benchmarks.pinnacle import reference
from examples.common.runs import Run
from examples.pinn import sampling
from examples.pinn.config import Config
from examples.pinn.train import train

PUBLISHED = "published.csv"
HERE = Path(__file__).with_name("problems")


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem, and at how many points it is trained."""

    problem: str
    interior_points: int = 300
    condition_points: int = 64


CASES = {
    "Burgers 1d-C": Case("burgers"),
    "Poisson 2d-C": Case(str(HERE / "poisson_2d_c.py")),
    # Ten periods across the start.
    "Heat 2d-MS": Case(str(HERE / "heat_2d_ms.py"), 256, 256),
    "Heat 2d-LT": Case(str(HERE / "heat_2d_lt.py")),
    # Three equations at each point.
    "NS 2d-C": Case(str(HERE / "ns_2d_c.py"), 200, 50),
    "Wave 1d-C": Case("wave"),
    "PNd": Case(str(HERE / "pnd.py"), condition_points=300),
    "HNd": Case(str(HERE / "hnd.py"), condition_points=128),
    # These were run after all settings had been chosen.
    "Poisson 2d-CG": Case(str(HERE / "poisson_2d_cg.py")),
    "NS 2d-CG": Case(str(HERE / "ns_2d_cg.py"), 200, 50),
    "PInv": Case(str(HERE / "pinv.py")),
    "HInv": Case(str(HERE / "hinv.py")),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ours": {
        "steps": 2000,
        "gauss_newton_steps": 250,
        "dtype": "float64",
    },
    "control": {
        "steps": 3000,
        "gauss_newton_steps": 0,
        "points": "resampled",
        "optimizer": "adam",
        "lr": (1e-3,),
        "schedule": "constant",
        "terms": "weighted",
        "condition_weight": 1.0,
        "initialization": "glorot",
        "units": "none",
    },
}
"""Ours are the defaults of the program; those of the paper."""


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Problems of PINNacle beside its published errors."""

    reference: Path = dataclasses.field(kw_only=True)
    """Folder of PINNacle's published table and reference data."""
    runs: Path = dataclasses.field(kw_only=True)
    """Folder for the runs."""
    problems: tuple[str, ...] = tuple(CASES)
    """Those of the table."""
    methods: tuple[Literal["ours", "control"], ...] = ("ours", "control")
    """Our setting, and that of the paper."""
    seeds: int = 3
    """Initial weights and sequences of points."""


def config_of(problem: str, method: str, options: Options) -> Config:
    case: dict[str, Any] = dataclasses.asdict(CASES[problem]) | SETTINGS[method]
    folder = options.runs / f"{problem}-{method}".lower().replace(" ", "-")
    return Config(
        folder, **case, seeds=options.seeds, checkpoint_every=100, resume=True
    )


def relative_errors(run: Run, config: Config) -> list[float | None]:
    """Of all fields together, as in the paper; for each seed."""
    _, solution = config.find_problem().reference()
    norms = {name: np.linalg.norm(x) for name, x in solution.items()}
    errors = {name: run.metrics["errors"][name][0] for name in norms}
    squares = sum((np.array(errors[x], float) * norms[x]) ** 2 for x in norms)
    total = np.sqrt(squares / sum(norm**2 for norm in norms.values()))
    return [float(x) if np.isfinite(x) else None for x in total]


def evaluations_of(config: Config) -> int:
    """At how many points the network is evaluated in all, with its derivatives."""
    conditions = len(config.find_problem().conditions)
    points = config.interior_points + conditions * config.condition_points
    # A Gauss-Newton step looks at its points a second time, from where it leads, and
    # at many more to draw them.
    candidates = 0
    if config.points == "adaptive":
        candidates = sampling.CANDIDATES * config.interior_points
    of_step = points + candidates
    return points * config.all_steps + of_step * config.gauss_newton_steps


def published(path: Path) -> list[dict[str, Any]]:
    """The errors of the paper, each as a run of one seed."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {"problem": row["problem"], "method": method, "lr": 1e-3, "errors": [float(x)]}
        for row in rows
        for method, x in row.items()
        if method != "problem" and x and row["problem"] in CASES
    ]


def main(options: Options) -> None:
    path = options.reference / PUBLISHED
    if not path.is_file():
        sys.exit(f"error: reference must hold {PUBLISHED}, got {options.reference}")
    for problem in options.problems:
        if problem not in CASES:
            sys.exit(f"error: problems must be of {', '.join(CASES)}, got {problem}")
    os.environ[reference.FOLDER] = str(options.reference.absolute())
    runs = published(path)
    if options.out is not None and options.out.exists():
        before = json.loads(options.out.read_text())["runs"]
        runs += [run for run in before if run["method"] in SETTINGS]
    for problem, method in itertools.product(options.problems, options.methods):
        config = config_of(problem, method, options)
        train(config, Console(soft_wrap=True))
        metrics = Run(config.out).metrics
        key = {"problem": problem, "method": method}
        runs = [run for run in runs if {**run, **key} != run]
        shares = [of_rates[0] for of_rates in metrics["shares"].values()]
        runs.append(
            key
            | {
                "lr": config.lr[0],
                "errors": relative_errors(Run(config.out), config),
                "unsatisfied": np.max(shares, axis=0).tolist(),
                "evaluations": evaluations_of(config),
                "minutes": config.all_steps / metrics["steps_per_second"] / 60,
            }
        )
        # Each run has its own settings: they are in this file.
        common.save(options, {"settings": {}, "runs": runs})
    rich.print(table(runs))


def table(runs: list[dict[str, Any]]) -> Table:
    """Errors of the seeds beside the best and the median published ones."""
    shown = Table("problem", "best published", "median published", *SETTINGS)
    for problem in dict.fromkeys(run["problem"] for run in runs):
        found = {
            run["method"]: run["errors"] for run in runs if run["problem"] == problem
        }
        of_paper = [found[method][0] for method in found if method not in SETTINGS]
        errors = [
            " ".join(f"{np.inf if x is None else x:.2g}" for x in found.get(method, []))
            for method in SETTINGS
        ]
        numbers = f"{min(of_paper):.2g}", f"{np.median(of_paper):.2g}"
        shown.add_row(problem, *numbers, *errors)
    return shown


if __name__ == "__main__":
    common.run(Options, main)
