"""One figure of several runs: scores over learning rates, or over depth or model."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from examples.common.measures import Measure, quartiles
from examples.common.records import Record
from examples.common.runs import RunError


@dataclasses.dataclass(frozen=True)
class Axis:
    """A setting by whose values methods are compared, one beside the other."""

    setting: str
    label: str
    ignored: frozenset[str]
    """Settings that do not tell one method from another."""
    defaults: Mapping[str, Any]
    """Of settings that are younger than some records."""


@dataclasses.dataclass(frozen=True)
class Series:
    """The scores of all seeds by learning rate or setting, for one line."""

    label: str
    scores: dict[Any, np.ndarray]


def draw(records: Sequence[Record], path: Path, measure: Measure, axis: Axis) -> None:
    """Over the axis, or over learning rates if all runs have one value there."""
    values = {record["settings"][axis.setting] for record in records}
    if len(values) == 1:
        figure = _figure(over_rates(records, measure), "learning rate", measure)
    else:
        figure = _figure(over_axis(records, measure, axis), axis.label, measure)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def over_rates(records: Sequence[Record], measure: Measure) -> list[Series]:
    """A line for each run, by its name."""
    return [
        Series(
            record["name"],
            dict(zip(record["settings"]["lr"], measure.scores(record), strict=True)),
        )
        for record in records
    ]


def over_axis(records: Sequence[Record], measure: Measure, axis: Axis) -> list[Series]:
    """A line for each method, at its best learning rate at each value of the axis.

    Runs that differ in their rates alone are taken together.
    """
    methods: dict[str, dict[Any, dict[float, np.ndarray]]] = {}
    for record, label in zip(records, method_labels(records, axis), strict=True):
        value, rates = record["settings"][axis.setting], record["settings"]["lr"]
        known = methods.setdefault(label, {}).setdefault(value, {})
        for rate, scores in zip(rates, measure.scores(record), strict=True):
            if rate in known:
                raise RunError(
                    f"two runs of {label} with {axis.setting} {value} and a rate of "
                    f"{rate:g}: {record['name']} and one before it differ in no "
                    "setting that this figure can show."
                )
            known[rate] = scores
    return [
        Series(label, {value: _best(r, measure) for value, r in values.items()})
        for label, values in methods.items()
    ]


def _best(rates: dict[float, np.ndarray], measure: Measure) -> np.ndarray:
    """The scores of the seeds at the rate with the best median."""
    scores = list(rates.values())
    return scores[measure.best_rate(scores)]


def method_labels(records: Sequence[Record], axis: Axis) -> list[str]:
    """Norm, scale control and optimizer, and whatever else differs among the runs."""
    settings = [{**axis.defaults, **record["settings"]} for record in records]
    shown = axis.ignored | {axis.setting, "lr", "norm", "optimizer", "scale_control"}
    varying = [
        name
        for name in (settings[0] if settings else ())
        if name not in shown and len({str(s.get(name)) for s in settings}) > 1
    ]
    return [_label(s, varying) for s in settings]


def _label(settings: dict[str, Any], varying: Sequence[str]) -> str:
    control, optimizer = settings["scale_control"], settings["optimizer"]
    parts = [control, optimizer]
    if settings.get("order") == "after":
        parts.reverse()
    if settings.get("norm") == "batch":
        parts.insert(0, "BatchNorm")
    method = " + ".join(part for part in parts if part != "none")
    others = [
        f"{name} {settings.get(name)}"
        for name in varying
        # Only StableGrad has these, and the order is seen.
        if not (name in ("group_by", "statistic") and "stablegrad" not in control)
        and name != "order"
    ]
    return ", ".join([method, *others])


def _figure(series: Sequence[Series], xlabel: str, measure: Measure):
    """Median and quartiles above, how many seeds trained below."""
    xs = list(dict.fromkeys(x for line in series for x in line.scores))
    if not any(isinstance(x, str) for x in xs):
        xs.sort()
    rows = 0.25 * len(series)
    figure, (above, below) = plt.subplots(
        2,
        1,
        figsize=(9, 4.5 + rows),
        sharex=True,
        height_ratios=[3.5, rows],
        layout="constrained",
    )
    for i, (line, style) in enumerate(zip(series, _styles(len(series)), strict=False)):
        # Side by side where lines share an x, which are equally spaced.
        shift = 0.4 * ((i + 0.5) / len(series) - 0.5)
        _line(above, xs, shift, line, style, measure)
        _row(below, xs, i, line, style, measure)
    _finish(above, below, series, xs, xlabel, measure)
    return figure


def _styles(number: int) -> Iterator[dict[str, Any]]:
    name, colors = ("tab10", 10) if number <= 10 else ("tab20", 20)
    palette = [plt.get_cmap(name)(i) for i in range(colors)]
    for color, marker in zip(
        itertools.cycle(palette), itertools.cycle("osD^vP*X<>"), strict=False
    ):
        yield {"color": color, "marker": marker}


def _line(ax, xs, shift: float, line: Series, style, measure: Measure) -> None:
    points = [x for x in xs if x in line.scores]
    low, median, high = np.clip(
        np.transpose([quartiles(line.scores[x]) for x in points]), *measure.limits
    )
    ax.errorbar(
        [xs.index(x) + shift for x in points],
        median,
        yerr=[np.maximum(median - low, 0), np.maximum(high - median, 0)],
        capsize=3,
        linewidth=1.2,
        markersize=5,
        **style,
    )


def _row(ax, xs, row: int, line: Series, style, measure: Measure) -> None:
    """Seeds that trained, of all: the darker the more. And the line's marker."""
    for x, scores in line.scores.items():
        count, total = measure.trained(scores), len(scores)
        corner = (xs.index(x) - 0.5, row - 0.5)
        grey = str(1 - 0.3 * count / total)
        ax.add_patch(plt.Rectangle(corner, 1, 1, facecolor=grey, edgecolor="white"))
        ax.text(xs.index(x), row, f"{count}/{total}", ha="center", va="center")
    ax.plot(0.016, row, transform=ax.get_yaxis_transform(), clip_on=False, **style)


def _finish(above, below, series, xs, xlabel: str, measure: Measure) -> None:
    score, name = measure.untrained
    above.axhline(score, color="black", linewidth=0.8, linestyle=":")
    place = {"xycoords": ("axes fraction", "data"), "va": "center"}
    above.annotate(name, (1.01, score), **place)
    above.set(
        yscale="log" if measure.logarithmic else "linear",
        ylabel=f"{measure.name}\nmedian and quartiles of seeds",
    )
    above.grid(which="both", axis="y", alpha=0.2)
    below.set(
        xlabel=xlabel,
        xlim=(-0.5, len(xs) - 0.5),
        ylim=(len(series) - 0.5, -0.5),
    )
    below.set_title(f"seeds with {measure.name} {measure.good}", fontsize="medium")
    below.set_xticks(
        range(len(xs)), [x if isinstance(x, str) else f"{x:g}" for x in xs]
    )
    below.set_yticks(range(len(series)), [line.label for line in series])
    below.tick_params(length=0)
