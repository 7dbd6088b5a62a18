"""What was measured, from benchmarks/results and docs/demo.json.

The runs of a file become records as `examples.common` reads them: settings, with the
learning rates in `lr`, and the scores by rate and seed.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.common.comparison import Axis
from examples.common.measures import Measure
from examples.common.records import Record
from examples.common.runs import read_json
from examples.image_classification import scores as images
from examples.pinn import scores as pinns

ROOT = Path(__file__).parents[2]
LOSS_TERMS = Axis("case", "problem", frozenset(), {})


Settings = Mapping[str, Any]


class ResultError(Exception):
    """A record that is not there: the message says which."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The scores of a method's seeds at one of its learning rates."""

    measure: Measure
    settings: Settings
    """Those that were recorded."""
    rate: float
    by_rate: Mapping[float, np.ndarray]
    """The scores at all rates that were run."""

    @property
    def scores(self) -> np.ndarray:
        return self.by_rate[self.rate]

    @property
    def rates(self) -> list[float]:
        return sorted(self.by_rate)

    def at(self, rate: float) -> "Result":
        """The same method at another rate; ResultError if that was not run."""
        if rate not in self.by_rate:
            raise ResultError(f"no rate of {rate:g} among {self.rates}")
        return dataclasses.replace(self, rate=rate)

    @property
    def median(self) -> float:
        return float(np.median(self.scores))

    @property
    def trained(self) -> int:
        """How many of the seeds trained."""
        return self.measure.trained(self.scores)


def path_of(file: str) -> str:
    """A file of records by its name, from the root; `_cpu` may be left out."""
    found = (f"benchmarks/results/{file}_cpu.json", f"benchmarks/results/{file}.json")
    for path in (*found, f"docs/{file}.json"):
        if (ROOT / path).exists():
            return path
    raise ResultError(f"there is no file {found[0]}")


@functools.cache
def content(file: str) -> dict[str, Any]:
    """What a file holds."""
    return read_json(ROOT / path_of(file), "a folder of results")


@functools.cache
def records(file: str) -> tuple[Measure, Axis, Sequence[Record]]:
    """How the runs of a file are judged, and one record for each method."""
    first, path = content(file)["runs"][0], ROOT / path_of(file)
    if pinns.SCORE in first:
        return pinns.ERROR, pinns.DEPTH, pinns.JUDGE.read([path])
    if images.SCORE in first:
        return images.ACCURACY, images.MODEL, images.JUDGE.read([path])
    return pinns.ERROR, LOSS_TERMS, _of_loss_terms(content(file)["runs"])


def _of_loss_terms(runs: Sequence[Settings]) -> list[Record]:
    """The runs of `benchmarks.loss_terms`, whose rates are runs of their own."""
    return [
        {
            "name": run["method"],
            "settings": {k: x for k, x in run.items() if k != "errors"}
            | {"lr": [run["lr"]], "seeds": len(run["errors"])},
            "relative_l2": [run["errors"]],
            "stopped_at_step": [[-1] * len(run["errors"])],
        }
        for run in runs
    ]


def best(file: str, **wanted: Any) -> Result:
    """The runs with some settings, at their best learning rate.

    Runs that differ in their rates only are taken together. `wanted` are settings, and
    `name` for that of a run.

    Raises:
      ResultError: if there is no such run, or more than one with the same rate.
    """
    measure, found = select(file, wanted)
    by_rate: dict[float, np.ndarray] = {}
    for record in found:
        new = dict(zip(record["settings"]["lr"], measure.scores(record), strict=True))
        if by_rate.keys() & new.keys():
            raise ResultError(f"{path_of(file)} has several runs with {_words(wanted)}")
        by_rate |= new
    chosen = list(by_rate)[measure.best_rate(list(by_rate.values()))]
    return Result(measure, found[0]["settings"], chosen, by_rate)


def select(file: str, wanted: Settings) -> tuple[Measure, Sequence[Record]]:
    """The records with some settings; ResultError if there are none."""
    measure, axis, known = records(file)
    found = [
        record
        for record in known
        if wanted.items()
        <= {**axis.defaults, **record["settings"], "name": record["name"]}.items()
    ]
    if not found:
        raise ResultError(f"{path_of(file)} has no run with {_words(wanted)}")
    return measure, found


def _words(wanted: Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in wanted.items())


def is_in(file: str, **wanted: Any) -> bool:
    """Whether there is a run with some settings."""
    try:
        select(file, wanted)
    except ResultError:
        return False
    return True


def device(file: str) -> str:
    """What the runs of a file were made on."""
    found = content(file)
    name = found["device"] if "device" in found else found["runs"][0]["device"]
    return "CPU" if name == "cpu" else str(name)


def seconds(file: str, method: str) -> np.ndarray:
    """The times of a method in a file of a benchmark."""
    methods = content(file)["methods"]
    if method not in methods:
        raise ResultError(f"{path_of(file)} has no method {method}")
    return np.asarray(methods[method]["seconds"])
