"""Which weights do loss terms need, and which methods find them? Error over weight.

python -m benchmarks.loss_terms --out FILE.json [--cases "Helmholtz 7 x 50" ...]

Every method has the same networks, points, steps and rates. The weight is that of each
condition's mean square beside the residual's, fixed over a run. Runs that FILE.json
holds already are not made again; a figure of all of them is drawn beside it.
"""

import dataclasses
import itertools
import json
import time
from typing import Any

import numpy as np
import rich
from rich.table import Table

from benchmarks import common
from benchmarks.loss_terms.figure import draw
from benchmarks.loss_terms.measure import Case, errors
from benchmarks.loss_terms.methods import BASES, FIXED, METHODS, OURS, PEERS, VARIANTS
from examples.common.optimizers import Base

RATES: dict[Base, tuple[float, ...]] = {"muon": (3e-3, 1e-2), "adam": (1e-3, 3e-3)}
CASES = {
    "Helmholtz 7 x 50": Case("helmholtz", 7, 50, 128, 512, 20_000, RATES),
    "Burgers 8 x 40": Case("burgers", 8, 40, 1024, 128, 8000, RATES),
    "Poisson 16 x 32": Case("poisson", 16, 32, 256, 64, 2000, RATES),
    "Poisson 64 x 32": Case("poisson", 64, 32, 256, 64, 2000, RATES),
    "Helmholtz 5 x 50": Case(
        "helmholtz", 5, 50, 128, 128, 3000, dict.fromkeys(BASES, (5e-3,))
    ),
    "Burgers 5 x 40": Case(
        "burgers", 5, 40, 512, 64, 3000, dict.fromkeys(BASES, (1e-2,))
    ),
}
WEIGHTS = tuple(10.0**k for k in range(-2, 7))
SETS = {"study": [*OURS, *FIXED, *PEERS], "ablation": [*OURS, *VARIANTS]}


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Which weights do loss terms need, and which methods find them?"""

    cases: tuple[str, ...] = tuple(CASES)[:4]
    """Problem and network."""
    bases: tuple[Base, ...] = BASES[:2]
    """Base optimizers."""
    methods: tuple[str, ...] = ("study",)
    """Names of methods, or sets of them: study, ablation."""
    weights: tuple[float, ...] = WEIGHTS
    """For fixed weights."""
    lr: tuple[float, ...] = ()
    """Other learning rates than those of the case."""
    seeds: int = 5
    """Initial weights and sequences of points, the same for every method."""
    steps: int | None = None
    """Other than those of the case."""

    def check(self) -> None:
        super().check()
        for option, known in (
            ("cases", list(CASES)),
            ("bases", list(BASES)),
            ("methods", [*SETS, *METHODS]),
        ):
            for name in getattr(self, option):
                if name not in known:
                    names = ", ".join(map(repr, known))
                    raise ValueError(f"{option} must be of {names}, got {name!r}")

    def runs(self) -> list[tuple[str, Base, str]]:
        """Case, base optimizer and method of each run."""
        names = [x for name in self.methods for x in SETS.get(name, [name])]
        runs = itertools.product(self.cases, self.bases, names)
        return [run for run in runs if run[2] != "MultiAdam" or run[1] == "adam"]


def main(options: Options) -> None:
    found: list[dict[str, Any]] = []
    if options.out is not None and options.out.exists():
        found = json.loads(options.out.read_text())["runs"]
    for name, base, method in options.runs():
        case = CASES[name]
        if options.steps is not None:
            case = dataclasses.replace(case, steps=options.steps)
        rates = options.lr or case.rates[base]
        key = {"case": name, "base": base, "method": method, "steps": case.steps}
        weights = options.weights if method in FIXED else (1.0,)
        columns = [
            key | {"lr": lr} | ({"weight": weight} if method in FIXED else {})
            for lr, weight in itertools.product(rates, weights)
        ]
        if all(is_among(found, column, options.seeds) for column in columns):
            continue
        start = time.perf_counter()
        reached = errors(case, base, method, rates, weights, options.seeds)
        seconds = time.perf_counter() - start
        reached = reached.reshape(-1, options.seeds)
        for column, numbers in zip(columns, reached, strict=True):
            found = [run for run in found if not column.items() <= run.items()]
            found.append(column | {"errors": _or_none(numbers), "seconds": seconds})
        common.save(options, {"runs": found})
    rich.print(table(found))
    if options.out is not None:
        draw(found, options.out.with_suffix(".png"))


def is_among(runs: list[dict[str, Any]], column: dict[str, Any], seeds: int) -> bool:
    """Whether it was run, with as many seeds."""
    return any(
        column.items() <= run.items() and len(run["errors"]) == seeds for run in runs
    )


def _or_none(numbers: np.ndarray) -> list[float | None]:
    """JSON has no NaN."""
    return [float(x) if np.isfinite(x) else None for x in numbers]


def table(runs: list[dict[str, Any]]) -> Table:
    """Errors of the seeds in order, lowest first."""
    shown = Table("case", "base", "method", "lr", "relative L2 errors")
    for run in runs:
        weight = f" {run['weight']:g}" if "weight" in run else ""
        numbers = sorted(np.inf if x is None else x for x in run["errors"])
        shown.add_row(
            run["case"],
            run["base"],
            run["method"] + weight,
            f"{run['lr']:g}",
            " ".join(f"{x:.2g}" for x in numbers),
        )
    return shown


if __name__ == "__main__":
    common.run(Options, main)
