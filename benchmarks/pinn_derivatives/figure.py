"""The figure of a comparison of derivatives, from its record."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import common


def draw(record: dict[str, Any], path: Path) -> None:
    """Horizontal bars: each method's time over ours."""
    over = common.ratios(record["methods"])
    names = sorted(over, key=lambda name: over[name][1])
    low, median, high = np.transpose([over[name] for name in names])
    figure = Figure(figsize=(7.5, 0.34 * len(names) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(
        names,
        median,
        color=["#1f5fa8" if name == "ours" else "#b8b8b8" for name in names],
        xerr=(median - low, high - median),
        error_kw={"elinewidth": 1, "ecolor": "#404040"},
    )
    axes.bar_label(bars, fmt="{:.1f}×", padding=5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * high.max())
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("time of a step over ours, less is better")
    settings = "{depth} tanh layers of {width}, {points:,} points, float32"
    settings = settings.format_map(record["settings"])
    machine = f"{record['device']}, jax {record['jax']}"
    axes.set_title(f"Δu and its gradient: {settings}\n{machine}", fontsize=10)
    figure.savefig(path, dpi=100)
    # A palette makes the file a third as large.
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
