"""One figure of several runs: scores over learning rates, or over depth or model."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from examples.common import pictures
from examples.common.measures import Measure, quartiles
from examples.common.records import Record
from examples.common.runs import RunError

MARKERS = "osD^vP*X<>"
LINES = ("-", "--", ":", "-.")
METHODS = (
    *("adam", "agc + adam", "clip + adam", "sgd", "stablegrad + muon", "clip + sgd"),
    *("stablegrad + adam", "stablegrad-prediction + adam", "muon", "agc + sgd"),
    *("BatchNorm + adam", "BatchNorm + sgd", "lion", "stablegrad + lion"),
    *("stablegrad + sgd", "stablegrad-prediction + sgd", "muon + stablegrad"),
    *("stablegrad-prediction + muon", "normalize + adam", "normalize + sgd"),
)
"""Those that have a colour of their own, the same in every figure."""


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
class Series:
    """One line: the scores of all seeds at each learning rate or value of the axis."""

    label: str
    scores: dict[Any, np.ndarray]


def draw(records: Sequence[Record], path: Path, measure: Measure, axis: Axis) -> None:
    """Over the axis, or over learning rates if all runs have one value there."""
    if len({record["settings"][axis.setting] for record in records}) == 1:
        figure = _figure(over_rates(records, measure, axis), "learning rate", measure)
    else:
        figure = _figure(over_axis(records, measure, axis), axis.label, measure)
    pictures.save(figure, path)


def over_rates(records: Sequence[Record], measure: Measure, axis: Axis) -> list[Series]:
    """A line for each run, by its method; by its name if the method says too little."""
    labels = method_labels(records, axis)
    if len(set(labels)) < len(labels):
        labels = [record["name"] for record in records]
    return [
        Series(label, _by_rate(record, measure))
        for label, record in zip(labels, records, strict=True)
    ]


def over_axis(records: Sequence[Record], measure: Measure, axis: Axis) -> list[Series]:
    """A line for each method, at its best learning rate for each value of the axis.

    Runs that differ only in their rates are taken together.
    """
    methods: dict[str, dict[Any, dict[float, np.ndarray]]] = {}
    for record, label in zip(records, method_labels(records, axis), strict=True):
        value = record["settings"][axis.setting]
        known = methods.setdefault(label, {}).setdefault(value, {})
        new = _by_rate(record, measure)
        for rate in known.keys() & new.keys():
            raise RunError(
                f"two runs of {label} with {axis.setting} {value} and a rate of "
                f"{rate:g}: {record['name']} and one before it differ in no setting "
                "that this figure can show."
            )
        known |= new

    def best(rates: dict[float, np.ndarray]) -> np.ndarray:
        scores = list(rates.values())
        return scores[measure.best_rate(scores)]

    return [
        Series(label, {value: best(rates) for value, rates in values.items()})
        for label, values in methods.items()
    ]


def _by_rate(record: Record, measure: Measure) -> dict[float, np.ndarray]:
    return dict(zip(record["settings"]["lr"], measure.scores(record), strict=True))


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


def _styles(series: Sequence[Series]) -> list[dict[str, Any]]:
    """The colours of methods, and for other names those that are left.

    Variants of a method have its colour, and a line style of their own.
    """
    methods = [line.label.partition(",")[0] for line in series]
    left = itertools.cycle(i for i, name in enumerate(METHODS) if name not in methods)
    colors = plt.get_cmap("tab20")
    return [
        {
            "color": colors(METHODS.index(name) if name in METHODS else next(left)),
            "marker": MARKERS[row % len(MARKERS)],
            "linestyle": LINES[methods[:row].count(name) % len(LINES)],
        }
        for row, name in enumerate(methods)
    ]


def _figure(series: Sequence[Series], xlabel: str, measure: Measure):
    """Median and quartiles of the seeds above, how many of them trained below."""
    xs = list(dict.fromkeys(x for line in series for x in line.scores))
    if not any(isinstance(x, str) for x in xs):
        xs.sort()
    rows = len(series)
    figure, (above, below) = plt.subplots(
        2,
        1,
        figsize=(9, 4.5 + 0.25 * rows),
        sharex=True,
        height_ratios=[3.5, 0.25 * rows],
        layout="constrained",
    )
    styles = _styles(series)
    for row, (line, style) in enumerate(zip(series, styles, strict=True)):
        places = [place for place, x in enumerate(xs) if x in line.scores]
        scores = [line.scores[xs[place]] for place in places]
        low, median, high = np.clip(
            np.transpose([quartiles(seeds) for seeds in scores]), *measure.limits
        )
        above.errorbar(
            # Lines that share an x stand side by side.
            np.add(places, 0.4 * ((row + 0.5) / rows - 0.5)),
            median,
            yerr=np.maximum([median - low, high - median], 0),
            capsize=3,
            linewidth=1.2,
            markersize=5,
            **style,
        )
        place = below.get_yaxis_transform()
        below.plot(0.016, row, transform=place, clip_on=False, **style)
        for place, seeds in zip(places, scores, strict=True):
            trained = measure.trained(seeds)
            grey = str(1 - 0.3 * trained / len(seeds))
            below.barh(row, 1, 1, place - 0.5, color=grey, edgecolor="white")
            below.text(place, row, f"{trained}/{len(seeds)}", ha="center", va="center")

    if measure.untrained is not None:
        score, name = measure.untrained
        place = above.get_yaxis_transform()
        above.axhline(score, color="black", linewidth=0.8, linestyle=":")
        above.text(1.01, score, name, va="center", transform=place)
    above.set_yscale("log" if measure.logarithmic else "linear")
    above.set_ylabel(f"{measure.name}\nmedian and quartiles of seeds")
    above.grid(which="both", axis="y", alpha=0.2)
    below.set_title(f"seeds with {measure.name} {measure.good}", fontsize="medium")
    below.set(xlabel=xlabel, xlim=(-0.5, len(xs) - 0.5), ylim=(rows - 0.5, -0.5))
    below.set_xticks(
        range(len(xs)), [x if isinstance(x, str) else f"{x:g}" for x in xs]
    )
    below.set_yticks(range(rows), [line.label for line in series])
    below.tick_params(length=0)
    return figure
