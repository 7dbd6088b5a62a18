"""Finished runs beside each other: what they are judged by, a table and a figure."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from examples.common import pictures
from examples.common.runs import Run, RunError, read_json

Record = dict[str, Any]
"""The name of a finished run, and what its metrics.json holds."""
Scores = Sequence[np.ndarray] | np.ndarray
"""For each learning rate those of its seeds; seeds that all rates have come first."""
Paths = tyro.conf.Positional[tuple[Path, ...]]


@dataclasses.dataclass(frozen=True)
class Plot:
    """Figures of a run, into its folder."""

    run: Path
    """Folder of the run."""


@dataclasses.dataclass(frozen=True)
class Collect:
    """One JSON file of several finished runs: settings and results."""

    runs: Paths
    """Folders of finished runs."""
    out: Path
    """File for the records."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """One table and one figure of several runs.

    The figure is over learning rates if all runs have the same depth or model.
    Otherwise it is over depth or model, each method at its best rate.
    """

    runs: Paths
    """Folders of finished runs, or files that `collect` wrote."""
    out: Path = Path("comparison.png")
    """File for the figure."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A score, and which scores are good."""

    name: str
    key: str
    """The key of the scores in metrics.json."""
    scores: Callable[[Record], Scores]
    """Those of a record."""
    lower_is_better: bool
    threshold: float
    """A seed counts as trained if its score is better."""
    limits: tuple[float, float]
    """Scores outside are drawn at these limits: a failed run may have any score."""

    def best_rate(self, scores: Scores) -> int:
        """The index of the learning rate with the best median.

        Rates are compared by the same number of seeds, the smallest of any rate.
        """
        common = min(map(len, scores))
        medians = [np.median(seeds[:common]) for seeds in scores]
        return int(np.argmin(medians) if self.lower_is_better else np.argmax(medians))

    def trained(self, scores: np.ndarray) -> int:
        """How many seeds trained."""
        better = np.less if self.lower_is_better else np.greater
        return int(np.sum(better(scores, self.threshold)))

    @property
    def good(self) -> str:
        """When a seed counts as trained, in a few characters."""
        if np.isinf(self.threshold):
            return "finite"
        return f"{'<' if self.lower_is_better else '>'} {self.threshold:g}"


def quartiles(scores: np.ndarray) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the seeds; may be infinite."""
    # "nearest": there is nothing between a number and infinity.
    low, high = np.quantile(scores, [0.25, 0.75], method="nearest")
    return float(low), float(np.median(scores)), float(high)


@dataclasses.dataclass(frozen=True)
class Axis:
    """A setting whose values are the x axis of a figure that compares methods."""

    setting: str
    label: str
    ignored: frozenset[str]
    """Settings that do not tell one method from another."""
    defaults: Mapping[str, Any]
    """Values of settings that older records do not have."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """How the runs of a program are read, judged and compared."""

    measures: tuple[Measure, ...]
    """The first that all runs have is what they are judged by."""
    axis: Axis
    speed: str
    """The key in metrics.json of how fast a run was."""
    together: Callable[[list[Record]], list[Record]] = lambda runs: runs
    """Makes one record of the runs that belong together."""

    def read(self, paths: Iterable[Path]) -> list[Record]:
        """The records of folders of runs and of files of collected ones."""
        return self.together(self._each(paths))

    def _each(self, paths: Iterable[Path]) -> list[Record]:
        found: list[Record] = []
        keys = {measure.key for measure in self.measures}
        for path in paths:
            if path.suffix == ".json":
                content = read_json(path, "a folder of collected runs")
                common = content.get("settings", {})
                for run in content.get("runs", []):
                    settings = {**common, **run.get("settings", {})}
                    found.append({"name": "", **run, "settings": settings})
            else:
                run = Run(path)
                found.append({"name": run.name, **run.metrics})
            if not found or keys.isdisjoint(found[-1]):
                raise RunError(
                    f"{path} is no run of this program: no {' or '.join(keys)} in it."
                )
        if not found:
            raise RunError("this needs the folders of one run or more.")
        return found

    def measure_of(self, found: list[Record]) -> Measure:
        """What runs are judged by: the first measure that all of them have."""
        for measure in self.measures:
            if all(measure.key in run for run in found):
                return measure
        raise RunError("these runs have no score in common.")

    def show(self, found: list[Record], console: Console) -> None:
        """Prints a table: each record at its best learning rate."""
        measure = self.measure_of(found)
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        table.caption = (
            f"{measure.name} at the best learning rate, median and quartiles over seeds"
        )
        table.add_column("run", overflow="fold")
        speed = self.speed.replace("_per_", "/")
        for column in ("lr", "median", "quartiles", measure.good, speed):
            table.add_column(column, justify="right", no_wrap=True)
        for record in found:
            scores = measure.scores(record)
            index = measure.best_rate(scores)
            digits = ".2e" if measure.lower_is_better else ".4f"
            low, median, high = (f"{x:{digits}}" for x in quartiles(scores[index]))
            rate = record[self.speed]
            table.add_row(
                record["name"],
                f"{record['settings']['lr'][index]:g}",
                median,
                f"{low} - {high}",
                f"{measure.trained(scores[index])}/{len(scores[index])}",
                "-" if rate is None else f"{rate:.1f}",
            )
        console.print(table, soft_wrap=False)

    def collect(self, options: Collect, console: Console) -> None:
        found = self._each(options.runs)
        save(found, options.out)
        console.print(f"{len(found)} runs: {options.out}", soft_wrap=True)

    def compare(self, options: Compare, console: Console) -> None:
        if options.out.suffix != ".png":
            raise RunError(f"--out must end in .png, got {options.out}.")
        found = self.read(options.runs)
        self.show(found, console)
        draw(found, options.out, self.measure_of(found), self.axis)
        console.print(f"Figure: {options.out}", soft_wrap=True)


def save(records: Sequence[Record], path: Path) -> None:
    """Writes records to a file, one line for each run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    path.write_text('{"runs": [\n' + lines + "\n]}\n")


def lines(
    records: Sequence[Record], measure: Measure, axis: Axis
) -> dict[str, dict[Any, np.ndarray]]:
    """For each method its scores over the axis, at its best learning rate.

    Over learning rates if all records have one value on the axis. Those that differ
    only in their rates are taken together; if some differ in nothing that labels show,
    each record is by itself.
    """
    labels = method_labels(records, axis)
    places = [record["settings"][axis.setting] for record in records]
    points = [
        (label, place, rate)
        for label, place, record in zip(labels, places, records, strict=True)
        for rate in record["settings"]["lr"]
    ]
    if len(set(points)) < len(points):
        labels = [f"{i + 1}: {record['name']}" for i, record in enumerate(records)]
    methods: dict[str, dict[Any, dict[float, np.ndarray]]] = {}
    for label, place, record in zip(labels, places, records, strict=True):
        by_rate = zip(record["settings"]["lr"], measure.scores(record), strict=True)
        methods.setdefault(label, {}).setdefault(place, {}).update(by_rate)
    if len(set(places)) == 1:
        return {label: rates for label, at in methods.items() for rates in at.values()}

    def best(by_rate: dict[float, np.ndarray]) -> np.ndarray:
        scores = list(by_rate.values())
        return scores[measure.best_rate(scores)]

    return {
        label: {place: best(by_rate) for place, by_rate in at.items()}
        for label, at in methods.items()
    }


def method_labels(records: Sequence[Record], axis: Axis) -> list[str]:
    """Norm, scale control and optimizer, and the other settings that differ."""
    settings = [{**axis.defaults, **record["settings"]} for record in records]
    shown = {axis.setting, "lr", "norm", "optimizer", "order", "scale_control"}
    varying = [
        name
        for name in (settings[0] if settings else ())
        if name not in axis.ignored | shown
        and len({str(s.get(name)) for s in settings}) > 1
    ]
    return [_label(s, varying) for s in settings]


def _label(settings: dict[str, Any], varying: Sequence[str]) -> str:
    control = settings["scale_control"]
    parts = [control, settings["optimizer"]]
    if settings.get("order") == "after":
        parts.reverse()
    if settings.get("norm") == "batch":
        parts.insert(0, "BatchNorm")
    method = " + ".join(part for part in parts if part != "none")
    # Only StableGrad has these.
    hidden = () if "stablegrad" in control else ("group_by", "statistic")
    others = [f"{name} {settings.get(name)}" for name in varying if name not in hidden]
    return ", ".join([method, *others])


def draw(records: Sequence[Record], path: Path, measure: Measure, axis: Axis) -> None:
    """Median and quartiles of the seeds above, how many of them trained below."""
    methods = lines(records, measure, axis)
    one_place = len({record["settings"][axis.setting] for record in records}) == 1
    xs = list(dict.fromkeys(x for scores in methods.values() for x in scores))
    if not any(isinstance(x, str) for x in xs):
        xs.sort()
    rows = len(methods)
    figure, (above, below) = plt.subplots(
        2,
        1,
        figsize=(9, 4.5 + 0.25 * rows),
        sharex=True,
        height_ratios=[3.5, 0.25 * rows],
        layout="constrained",
    )
    below.set_yticks(range(rows), methods)
    for row, scores in enumerate(methods.values()):
        places = [xs.index(x) for x in scores]
        bands = np.clip([quartiles(x) for x in scores.values()], *measure.limits)
        low, median, high = bands.T
        color = plt.get_cmap("tab20")((2 * row + row // 10) % 20)
        # Lines that share an x stand side by side.
        side_by_side = np.add(places, 0.4 * ((row + 0.5) / rows - 0.5))
        bars = np.maximum([median - low, high - median], 0)
        above.errorbar(side_by_side, median, bars, color=color, marker="o", capsize=3)
        below.get_yticklabels()[row].set_color(color)
        for place, x in zip(places, scores.values(), strict=True):
            trained = f"{measure.trained(x)}/{len(x)}"
            below.text(place, row, trained, ha="center", va="center")
    above.set_yscale("log" if measure.lower_is_better else "linear")
    above.set_ylabel(f"{measure.name}\nmedian and quartiles of seeds")
    above.grid(which="both", axis="y", alpha=0.2)
    below.set_title(f"seeds with {measure.name} {measure.good}", fontsize="medium")
    below.set(xlabel="learning rate" if one_place else axis.label)
    below.set(xlim=(-0.5, len(xs) - 0.5), ylim=(rows - 0.5, -0.5))
    below.set_xticks(
        range(len(xs)), [x if isinstance(x, str) else f"{x:g}" for x in xs]
    )
    pictures.save(figure, path)
