"""What was measured, from benchmarks/results and docs/demo.json, and how it is written.

A run is its settings and its scores by learning rate and seed: relative L2 errors, or
test accuracies. A failed run has an infinite error, or an accuracy of zero.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
TRAINED = 0.1
"""A seed counts as trained if its error is below."""
LOST = 0.3
"""A seed of the set of loss terms is lost if its error is above."""

Settings = Mapping[str, Any]


class ResultError(Exception):
    """A record that is not there: the message says which."""


class NotRunError(ResultError):
    """No run has the settings, or the rate."""


# --- Numbers ---


def number(x: float, figures: int = 2) -> str:
    """With so many significant digits, zeros at the end too."""
    if not np.isfinite(x):
        return "not finite"
    if abs(x) >= 10**figures:
        return f"{x:,.0f}"
    # Python's own format goes over to exponents below 1e-4.
    if 0 < abs(x) < 1e-4:
        return f"{x:.{figures - 1}e}".replace("e-0", "e-")
    return f"{x:#.{figures}g}".rstrip(".")


def span(values: Iterable[float]) -> str:
    """The least and the largest of several numbers."""
    values = sorted(values)
    low, high = number(values[0]), number(values[-1])
    return low if low == high else f"{low} to {high}"


def listed(values: Iterable[Any]) -> str:
    """The different values: a, b and c."""
    words = [f"{x:,g}" for x in dict.fromkeys(values)]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


# --- Runs ---


@dataclasses.dataclass(frozen=True)
class Result:
    """The scores of the seeds of some runs, at one of their learning rates."""

    file: str
    settings: Settings
    rate: float
    by_rate: Mapping[float, Sequence[float]]
    """The scores at all rates that were run."""
    is_error: bool
    """Whether lower scores are better, as for errors."""
    unknowns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Coefficients that the seeds found, by name and rate."""

    @property
    def scores(self) -> Sequence[float]:
        return self.by_rate[self.rate]

    @property
    def median(self) -> float:
        return float(np.median(self.scores))

    @property
    def costs(self) -> np.ndarray:
        """The scores, of which lower ones are better."""
        return np.array(self.scores) * (1 if self.is_error else -1)

    @property
    def cost(self) -> float:
        """Their median."""
        return float(np.median(self.costs))

    def written(self, score: float) -> str:
        """Errors have digits, accuracies places."""
        if self.is_error:
            return number(score)
        return f"{score:.3f}" if score > 0 else "not finite"

    def _off(self) -> dict[str, str]:
        """By how many percent the coefficients are off, and at worst."""
        exact = {"convection": 0.0, "log_nu": np.log(0.01 / np.pi)}
        texts = {}
        for name, rows in self.unknowns.items():
            found = np.array(rows[self.settings["lr"].index(self.rate)])
            logarithms = found if name.startswith("log_") else np.log(found)
            off = 100 * np.abs(np.expm1(logarithms - exact[name]))
            texts[f"{name}_off"] = number(float(np.median(off)))
            texts[f"{name}_worst"] = number(float(np.max(off)))
        return texts

    def texts(self) -> dict[str, Any]:
        """What a cell may show, by name: the settings too."""
        trained = sum(score < TRAINED for score in self.scores)
        return {
            **self.settings,
            **self._off(),
            "rate": self.rate,
            "rates": listed(sorted(self.by_rate)),
            "median": self.written(self.median),
            "seeds": ", ".join(map(self.written, self.scores)),
            "lowest": self.written(min(self.scores)),
            "highest": self.written(max(self.scores)),
            "trained": f"{trained} of {len(self.scores)}",
            "lost": sum(score > LOST for score in self.scores),
        }


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
    found: dict[str, Any] = json.loads((ROOT / path_of(file)).read_text())
    return found


def device(file: str) -> str:
    """What the runs of a file were made on."""
    found = content(file)
    name = found["device"] if "device" in found else found["runs"][0]["device"]
    return "CPU" if name == "cpu" else str(name)


@functools.cache
def _runs(file: str) -> list[tuple[Settings, Settings]]:
    """The settings of each run, with its name, and all that was recorded of it."""
    shared = content(file).get("settings", {})
    return [
        ({"name": run.get("name"), **shared, **run.get("settings", run)}, run)
        for run in content(file)["runs"]
    ]


def _scores(settings: Settings, run: Settings) -> dict[float, dict[int, float]]:
    """By learning rate and seed."""
    is_error = "test_accuracy" not in run
    scores = (
        run.get("relative_l2", run.get("errors")) if is_error else run["test_accuracy"]
    )
    # What is not finite is null in JSON, and NaN here.
    scores = np.array(scores, float)
    failed = np.isnan(scores) | (np.array(run.get("stopped_at_step", -1)) >= 0)
    rates = np.atleast_1d(settings["lr"]).tolist()
    rows = np.where(failed, np.inf if is_error else 0.0, scores).reshape(len(rates), -1)
    first = settings.get("seed", 0)
    return {
        rate: dict(enumerate(row.tolist(), first))
        for rate, row in zip(rates, rows, strict=True)
    }


def best(
    file: str, *, rate: float | None = None, tuned: str = "", times: float = 1, **wanted
) -> Result:
    """The runs with some settings, at their best learning rate.

    Runs that differ in their rates or seeds only are taken together. Rates are compared
    by the same number of seeds, the smallest of any rate.

    Args:
      file: the name of a file of records.
      rate: a rate, instead of the best.
      tuned, times: a setting that has the best of its values, times a factor.
      wanted: settings of the runs, each a value or a list of values that will do.

    Raises:
      ResultError: if there is no such run, or more than one with a rate and seed.
    """
    words = ", ".join(f"{name} {value}" for name, value in wanted.items())
    found = [pair for pair in _runs(file) if _has(pair[0], wanted)]
    if not found:
        raise NotRunError(f"{path_of(file)} has no run with {words}")
    if tuned:
        values = sorted({settings[tuned] for settings, _ in found})
        results = [best(file, **wanted, **{tuned: value}) for value in values]
        chosen = min(results, key=lambda result: result.cost).settings[tuned]
        return best(file, rate=rate, **wanted, **{tuned: chosen * times})
    by_seed: dict[float, dict[int, float]] = {}
    for settings, run in found:
        for lr, scores in _scores(settings, run).items():
            if by_seed.setdefault(lr, {}).keys() & scores.keys():
                raise ResultError(f"{path_of(file)} has several runs with {words}")
            by_seed[lr] |= scores
    by_rate = {r: [s for _, s in sorted(by_seed[r].items())] for r in sorted(by_seed)}
    if rate is not None and rate not in by_rate:
        raise NotRunError(f"{path_of(file)} has no rate of {rate:g} with {words}")
    settings, run = found[0]
    is_error, unknowns = "test_accuracy" not in run, run.get("unknowns", {})

    def result(rate, by_rate):
        return Result(file, settings, rate, by_rate, is_error, unknowns)

    if rate is None:
        common = min(map(len, by_rate.values()))
        fair = {lr: scores[:common] for lr, scores in by_rate.items()}
        rate = min(fair, key=lambda lr: result(lr, fair).cost)
    return result(rate, by_rate)


def _has(settings: Settings, wanted: Settings) -> bool:
    return all(
        settings.get(name) in (value if isinstance(value, list) else [value])
        for name, value in wanted.items()
    )
