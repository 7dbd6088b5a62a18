"""Error over the weight of the conditions, and the methods that have none.

python -m benchmarks.loss_terms.figure FILE.json [FILE.json ...] --out FILE.png
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.artist import Artist

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
FAILED = 2.0
"""Larger errors, and those that are not finite, are drawn as this one."""


def best(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    """Quartiles of the seeds at the rate with the lowest median."""
    errors = [
        [FAILED if x is None else min(x, FAILED) for x in run["errors"]] for run in runs
    ]
    return np.quantile(min(errors, key=np.median), [0.25, 0.5, 0.75])


def panel(ax, runs: Sequence[dict[str, Any]]) -> None:
    weights = sorted({run["weight"] for run in runs if "weight" in run})
    bands = [best([run for run in runs if run.get("weight") == w]) for w in weights]
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
    ax.set(xscale="log", yscale="log", ylim=(1e-4, FAILED))
    ax.grid(which="major", alpha=0.3)


def main(
    records: tyro.conf.Positional[tuple[Path, ...]], out: Path, base: str = "muon"
) -> None:
    """Draws the cases that were run with fixed weights, each at its best rate."""
    runs = [run for path in records for run in json.loads(path.read_text())["runs"]]
    runs = [run for run in runs if run["base"] == base]
    cases = list(dict.fromkeys(run["case"] for run in runs if "weight" in run))
    # Two in a row, so that they can be read on a small screen.
    rows, columns = (len(cases) + 1) // 2, min(2, len(cases))
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.6 * columns + 0.4, 2.9 * rows + 0.6),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax in axes.flat[len(cases) :]:
        ax.set_visible(False)
    lines: dict[str, Artist] = {}
    for ax, case in zip(axes.flat, cases, strict=False):
        panel(ax, [run for run in runs if run["case"] == case])
        size = re.sub(r" (\d+) x (\d+)", r", \1 layers of \2", case)
        ax.set(title=f"{size}: {base.capitalize()}", xlabel="weight of the conditions")
        handles, labels = ax.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    for ax in axes[:, 0]:
        ax.set_ylabel("relative L2 error")
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=3)
    pictures.save(figure, out)


if __name__ == "__main__":
    tyro.cli(main)
