"""Problems of PINNacle in one setting without weights, beside its published errors.

python -m benchmarks.pinnacle --reference FOLDER --runs FOLDER --out FILE.json

FOLDER holds the published table and the reference data. Each problem is trained by
examples.pinn with one setting; points, steps and the network's size are in CASES. The
control is that of the paper: Adam, every weight 1. Runs that are finished are kept.
"""

import csv
import dataclasses
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
from examples.pinn.config import Config
from examples.pinn.train import train

PUBLISHED = "published.csv"
HERE = Path(__file__).with_name("problems")


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem, and at how many points it is trained."""

    problem: str
    interior_points: int = 400
    condition_points: int = 100


CASES = {
    "Burgers 1d-C": Case("burgers"),
    "Poisson 2d-C": Case(str(HERE / "poisson_2d_c.py")),
    "Heat 2d-MS": Case(str(HERE / "heat_2d_ms.py")),
    "Heat 2d-LT": Case(str(HERE / "heat_2d_lt.py")),
    # Three equations at each point.
    "NS 2d-C": Case(str(HERE / "ns_2d_c.py"), 200, 50),
    "Wave 1d-C": Case("wave"),
    "PNd": Case(str(HERE / "pnd.py"), condition_points=400),
    "HNd": Case(str(HERE / "hnd.py"), condition_points=200),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ours": {"steps": 2000, "gauss_newton_steps": 300, "dtype": "float64"},
    "control": {
        "steps": 10_000,
        "gauss_newton_steps": 0,
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


def config_of(name: str, method: str, options: Options) -> Config:
    case: dict[str, Any] = dataclasses.asdict(CASES[name]) | SETTINGS[method]
    folder = options.runs / f"{name}-{method}".lower().replace(" ", "-")
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


def points_of(config: Config) -> int:
    """At which the network is evaluated in a step."""
    conditions = len(config.find_problem().conditions)
    return config.interior_points + conditions * config.condition_points


def main(options: Options) -> None:
    path = options.reference / PUBLISHED
    if not path.is_file():
        sys.exit(f"error: reference must hold {PUBLISHED}, got {options.reference}")
    with path.open(newline="") as file:
        published = {row.pop("problem"): row for row in csv.DictReader(file)}
    for name in options.problems:
        if name not in CASES:
            sys.exit(f"error: problems must be of {', '.join(CASES)}, got {name}")
    os.environ[reference.FOLDER] = str(options.reference.absolute())
    found: dict[str, Any] = {}
    if options.out is not None and options.out.exists():
        found = json.loads(options.out.read_text())["problems"]
    for name in options.problems:
        of_paper = {k: float(x) if x else None for k, x in published[name].items()}
        entry = found.setdefault(name, {"published": of_paper})
        for method in options.methods:
            config = config_of(name, method, options)
            train(config, Console(soft_wrap=True))
            run = Run(config.out)
            entry[method] = {
                "errors": relative_errors(run, config),
                "unsatisfied": largest(run.metrics["shares"]),
                "steps": config.all_steps,
                "points": points_of(config),
                "steps_per_second": run.metrics["steps_per_second"],
            }
            common.save(options, {"settings": SETTINGS, "problems": found})
    rich.print(table(found))


def largest(shares: dict[str, Any]) -> list[float]:
    """Of the terms, over what they are for the best constant field; for each seed."""
    return np.max([x[0] for x in shares.values()], axis=0).tolist()


def table(found: dict[str, Any]) -> Table:
    """Errors of the seeds beside the best and the median published ones."""
    shown = Table("problem", "best published", "median published", "control", "ours")
    for name, entry in found.items():
        of_paper = [x for x in entry["published"].values() if x is not None]
        errors = [
            " ".join(f"{np.inf if x is None else x:.2g}" for x in entry[m]["errors"])
            if m in entry
            else ""
            for m in ("control", "ours")
        ]
        best, median = min(of_paper), np.median(of_paper)
        shown.add_row(name, f"{best:.2g}", f"{median:.2g}", *errors)
    return shown


if __name__ == "__main__":
    common.run(Options, main)
