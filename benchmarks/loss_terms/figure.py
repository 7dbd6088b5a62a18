"""Error over the weight of the conditions, and the methods that have none.

python -m benchmarks.loss_terms.figure FILE.json [FILE.json ...] --out FILE.png
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tyro

from examples.common import pictures

STYLES = {
    "balanced": ("tab:red", "-", 2.5),
    "equal scales (0.1)": ("tab:orange", (0, (5, 1, 1, 1)), 1.3),
    "gradient norms": ("tab:blue", "--", 1.3),
    "annealing": ("tab:green", ":", 1.6),
    "ConFIG": ("tab:purple", "-.", 1.3),
    "MultiAdam": ("tab:brown", (0, (1, 3)), 1.6),
}
"""Colour, line style and width of the methods without a weight."""


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each case and base optimizer, each method at its best rate."""
    kinds = list(dict.fromkeys((run["case"], run["base"]) for run in runs))
    # Two in a row, so that they can be read on a small screen.
    columns = min(2, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.6 * columns + 0.4, 2.9 * rows + 0.6),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax in axes.flat[len(kinds) :]:
        ax.set_visible(False)
    for ax, (case, base) in zip(axes.flat, kinds, strict=False):
        panel(ax, [r for r in runs if (r["case"], r["base"]) == (case, base)])
        size = re.sub(r" (\d+) x (\d+)", r", \1 layers of \2", case)
        ax.set_title(f"{size}: {base.capitalize()}")
        ax.set_xlabel("weight of the conditions")
    for ax in axes[:, 0]:
        ax.set_ylabel("relative L2 error")
    legends = [ax.get_legend_handles_labels() for ax in axes.flat]
    lines = {label: line for pair in legends for line, label in zip(*pair, strict=True)}
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=3)
    pictures.save(figure, path)


def panel(ax, runs: Sequence[dict[str, Any]]) -> None:
    weights = sorted({run["weight"] for run in runs if "weight" in run})
    bands = [best([r for r in runs if r.get("weight") == w]) for w in weights]
    if bands:
        low, median, high = np.transpose(bands)
        ax.plot(weights, median, "o-", color="black", label="fixed weight")
        ax.fill_between(weights, low, high, color="black", alpha=0.12, linewidth=0)
    for name, (color, style, width) in STYLES.items():
        of_method = [run for run in runs if run["method"] == name]
        if of_method:
            low, median, high = best(of_method)
            ax.axhline(
                median, color=color, linestyle=style, linewidth=width, label=name
            )
            if name == "balanced":
                ax.axhspan(low, high, color=color, alpha=0.15, linewidth=0)
    ax.set(xscale="log", yscale="log", ylim=(1e-4, 2))
    ax.grid(which="major", alpha=0.3)


def best(runs: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Quartiles of the seeds at the rate with the lowest median; 2 where it failed."""
    failed = 2.0
    errors = [
        [failed if x is None else min(x, failed) for x in r["errors"]] for r in runs
    ]
    low, median, high = np.quantile(min(errors, key=np.median), [0.25, 0.5, 0.75])
    return float(low), float(median), float(high)


def main(
    records: tyro.conf.Positional[tuple[Path, ...]], out: Path, base: str = "muon"
) -> None:
    """Draws the cases of some records that were run with fixed weights."""
    runs = [run for path in records for run in json.loads(path.read_text())["runs"]]
    runs = [run for run in runs if run["base"] == base]
    weighted = {run["case"] for run in runs if "weight" in run}
    draw([run for run in runs if run["case"] in weighted], out)


if __name__ == "__main__":
    tyro.cli(main)
