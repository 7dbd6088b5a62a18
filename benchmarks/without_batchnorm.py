"""Test accuracy over the learning rate of SGD, with BatchNorm and without.

python -m benchmarks.without_batchnorm --out FILE.png
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro

from examples.common import pictures

RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "ResNet-50": RESULTS / "images_digits_depth_scaled_cpu.json",
    "EfficientNetV2-S": RESULTS / "images_efficientnet_cpu.json",
}
LINES = {
    ("batch", "none"): ("BatchNorm", "black", "o--"),
    ("none", "none"): ("nothing instead", "tab:gray", "o-"),
    ("none", "clip"): ("clipping", "tab:orange", "v-"),
    ("none", "agc"): ("AGC", "tab:blue", "^-"),
    ("none", "stablegrad-prediction"): ("StableGrad", "tab:red", "s-"),
}
"""Label, colour and style by norm and scale control."""


def panel(ax, record_file: Path) -> None:
    """A line for each method: the medians of the seeds, and their range."""
    runs = json.loads(record_file.read_text())["runs"]
    for method, (label, color, style) in LINES.items():
        by_rate: dict[float, list[float]] = {}
        for run in runs:
            settings = run["settings"]
            names = settings["optimizer"], settings["norm"], settings["scale_control"]
            if names == ("sgd", *method):
                # None where the loss was not finite.
                accuracy = run["test_accuracy"] or 0.0
                by_rate.setdefault(settings["lr"], []).append(accuracy)
        rates = sorted(by_rate)
        bands = [np.quantile(by_rate[rate], [0, 0.5, 1]) for rate in rates]
        low, median, high = np.transpose(bands)
        ax.plot(rates, median, style, color=color, label=label, markersize=5)
        ax.fill_between(rates, low, high, color=color, alpha=0.15, linewidth=0)
    ax.set(xscale="log", xlabel="learning rate", ylim=(-0.03, 1.03))
    ax.grid(alpha=0.3)


def main(out: Path) -> None:
    """Draws both networks, trained on the digits of scikit-learn."""
    figure, axes = plt.subplots(
        1, len(NETWORKS), figsize=(7.6, 4), layout="constrained", sharey=True
    )
    for ax, (network, record_file) in zip(axes, NETWORKS.items(), strict=True):
        panel(ax, record_file)
        ax.set_title(f"{network}, SGD with momentum")
    axes[0].set_ylabel("test accuracy; 0: not finite")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(LINES))
    pictures.save(figure, out)


if __name__ == "__main__":
    tyro.cli(main)
