"""One figure of several runs: errors over learning rates, or over depth."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from examples.common.runs import RunError
from examples.pinn.records import (
    TRAINED,
    Record,
    final_errors,
    quartiles,
    trained,
)

# Settings that do not tell one method from another.
NOT_OF_A_METHOD = {"depth", "lr", "seeds", "chunk", "checkpoint_every"}

WORST = 2.0
"""Errors above are drawn here: a network that did not train may have any."""


@dataclasses.dataclass(frozen=True)
class Series:
    """The errors of all seeds by learning rate or depth, for one line."""

    label: str
    errors: dict[float, np.ndarray]


def draw(records: Sequence[Record], path: Path) -> None:
    """Over learning rates for runs of one depth, over depth for runs of several."""
    depths = {record["settings"]["depth"] for record in records}
    if len(depths) == 1:
        figure = _figure(over_rates(records), "learning rate")
    else:
        figure = _figure(over_depth(records), "hidden layers")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def over_rates(records: Sequence[Record]) -> list[Series]:
    """A line for each run, by its name."""
    return [
        Series(
            record["name"],
            dict(zip(record["settings"]["lr"], final_errors(record), strict=True)),
        )
        for record in records
    ]


def over_depth(records: Sequence[Record]) -> list[Series]:
    """A line for each method, at its best learning rate at each depth.

    Runs that differ in their rates alone are taken together.
    """
    methods: dict[str, dict[float, dict[float, np.ndarray]]] = {}
    for record, label in zip(records, method_labels(records), strict=True):
        depth, rates = record["settings"]["depth"], record["settings"]["lr"]
        known = methods.setdefault(label, {}).setdefault(depth, {})
        for rate, errors in zip(rates, final_errors(record), strict=True):
            if rate in known:
                raise RunError(
                    f"two runs of {label} with {depth} layers and a rate of {rate:g}: "
                    f"{record['name']} and one before it differ in no setting that a "
                    "figure over depth can show."
                )
            known[rate] = errors
    return [
        Series(label, {depth: _best(rates) for depth, rates in depths.items()})
        for label, depths in methods.items()
    ]


def _best(rates: dict[float, np.ndarray]) -> np.ndarray:
    """The errors of the seeds at the rate with the lowest median."""
    return min(rates.values(), key=np.median)


def method_labels(records: Sequence[Record]) -> list[str]:
    """Optimizer and scale control, and whatever else differs among the runs."""
    settings = [record["settings"] for record in records]
    shown = NOT_OF_A_METHOD | {"optimizer", "scale_control"}
    varying = [
        name
        for name in settings[0]
        if name not in shown and len({str(s.get(name)) for s in settings}) > 1
    ]
    return [_label(s, varying) for s in settings]


def _label(settings: dict[str, Any], varying: Sequence[str]) -> str:
    control, optimizer = settings["scale_control"], settings["optimizer"]
    method = optimizer if control == "none" else f"{control} + {optimizer}"
    others = [
        f"{name} {settings.get(name)}"
        for name in varying
        # Only StableGrad has these.
        if name not in ("group_by", "statistic") or control.startswith("stablegrad")
    ]
    return ", ".join([method, *others])


def _figure(series: Sequence[Series], xlabel: str):
    """Median and quartiles above, how many seeds trained below."""
    xs = sorted({x for line in series for x in line.errors})
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
        _line(above, xs, shift, line, style)
        _row(below, xs, i, line, style)
    _finish(above, below, series, xs, xlabel)
    return figure


def _styles(number: int) -> Iterator[dict[str, Any]]:
    name, colors = ("tab10", 10) if number <= 10 else ("tab20", 20)
    palette = [plt.get_cmap(name)(i) for i in range(colors)]
    for color, marker in zip(
        itertools.cycle(palette), itertools.cycle("osD^vP*X<>"), strict=False
    ):
        yield {"color": color, "marker": marker}


def _line(ax, xs, shift: float, line: Series, style: dict[str, Any]) -> None:
    points = sorted(line.errors)
    low, median, high = np.clip(
        np.transpose([quartiles(line.errors[x]) for x in points]), None, WORST
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


def _row(ax, xs, row: int, line: Series, style: dict[str, Any]) -> None:
    """Seeds that trained, of all: the darker the more. And the line's marker."""
    for x, errors in line.errors.items():
        count, total = trained(errors), len(errors)
        corner = (xs.index(x) - 0.5, row - 0.5)
        grey = str(1 - 0.3 * count / total)
        ax.add_patch(plt.Rectangle(corner, 1, 1, facecolor=grey, edgecolor="white"))
        ax.text(xs.index(x), row, f"{count}/{total}", ha="center", va="center")
    ax.plot(0.016, row, transform=ax.get_yaxis_transform(), clip_on=False, **style)


def _finish(above, below, series: Sequence[Series], xs, xlabel: str) -> None:
    above.axhline(1, color="black", linewidth=0.8, linestyle=":")
    above.annotate("u = 0", (1.01, 1), xycoords=("axes fraction", "data"), va="center")
    above.set(yscale="log", ylabel="relative L2 error\nmedian and quartiles of seeds")
    above.grid(which="both", axis="y", alpha=0.2)
    below.set(
        xlabel=xlabel,
        xlim=(-0.5, len(xs) - 0.5),
        ylim=(len(series) - 0.5, -0.5),
    )
    below.set_title(f"seeds with an error below {TRAINED}", fontsize="medium")
    below.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    below.set_yticks(range(len(series)), [line.label for line in series])
    below.tick_params(length=0)
