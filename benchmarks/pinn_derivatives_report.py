"""Tables and figure of a comparison of derivatives, from the numbers of its record."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

OURS, OTHERS = "#1f5fa8", "#b8b8b8"


def ratios(found: dict[str, Any]) -> dict[str, np.ndarray]:
    """Quartiles of each method's time over the first one's, within each round."""
    seconds = {
        name: np.asarray(method["seconds"])
        for name, method in found.items()
        if method.get("seconds")
    }
    first = next(iter(seconds.values()))
    return {
        name: np.quantile(s / first, [0.25, 0.5, 0.75]) for name, s in seconds.items()
    }


def step_table(found: dict[str, Any], case: dict[str, int]) -> Table:
    table = Table(
        title="mean square of Δu - f and its gradient: "
        f"{case['depth']} layers of {case['width']}, {case['points']} points",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("method", no_wrap=True)
    for column in ("ms", "quartiles", "ratio", "compile s", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    over = ratios(found)
    for name, method in found.items():
        if name not in over:
            table.add_row(name, method["unavailable"])
            continue
        low, median, high = 1e3 * np.quantile(method["seconds"], [0.25, 0.5, 0.75])
        table.add_row(
            name,
            f"{median:.1f}",
            f"{low:.0f} - {high:.0f}",
            f"{over[name][1]:.2f}",
            f"{method['compile_seconds']:.1f}",
            f"{method['error']:.1e}",
        )
    return table


def compile_table(compiling: dict[str, list[float]]) -> Table:
    table = Table(title="trace and compile of the training program")
    for column in ("hidden layers", "median s", "over the least deep"):
        table.add_column(column, justify="right")
    least = np.median(compiling[min(compiling, key=int)])
    for depth, seconds in compiling.items():
        median = np.median(seconds)
        table.add_row(depth, f"{median:.1f}", f"{median / least:.2f}")
    return table


def draw(record: dict[str, Any], path: Path) -> None:
    """Horizontal bars: how many times as long as ours each method takes."""
    over = ratios(record["methods"])
    names = sorted(over, key=lambda name: over[name][1])
    low, median, high = np.transpose([over[name] for name in names])
    figure = Figure(figsize=(7.5, 0.34 * len(names) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    colours = [OURS if name.startswith("ours") else OTHERS for name in names]
    axes.barh(
        names,
        median,
        color=colours,
        xerr=(median - low, high - median),
        error_kw={"elinewidth": 1, "ecolor": "#404040"},
    )
    for index, (value, end) in enumerate(zip(median, high, strict=True)):
        axes.annotate(
            f"{value:.1f}×",
            (end, index),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * high.max())
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("time of a step over ours, less is better")
    axes.set_title(
        f"Δu and its gradient: {record['depth']} tanh layers of {record['width']}, "
        f"{record['points']:,} points, {record['dtype']}\n"
        f"{record['device']}, jax {record['jax']}",
        fontsize=10,
        loc="left",
    )
    figure.savefig(path, dpi=150)
