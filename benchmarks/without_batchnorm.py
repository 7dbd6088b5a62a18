"""Test accuracy over the learning rate of SGD, with BatchNorm and without.

python -m benchmarks.without_batchnorm --out FILE.png
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro

from examples.common import pictures, records
from examples.common.measures import quartiles
from examples.image_classification.scores import ACCURACY, by_method

RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "ResNet-50": RESULTS / "images_digits_depth_scaled_cpu.json",
    "EfficientNetV2-S": RESULTS / "images_efficientnet_cpu.json",
}
LINES = {
    "BatchNorm + sgd": ("BatchNorm", "black", "o--"),
    "sgd": ("nothing instead", "tab:gray", "o-"),
    "clip + sgd": ("clipping", "tab:orange", "v-"),
    "agc + sgd": ("AGC", "tab:blue", "^-"),
    "stablegrad-prediction + sgd": ("StableGrad", "tab:red", "s-"),
}
"""Label, colour and style of each method."""


def panel(ax, record_file: Path) -> None:
    """A line for each method: the medians of the seeds, and their quartiles."""
    runs = records.read([record_file], {ACCURACY.key})
    methods = {method["name"]: method for method in by_method(runs)}
    for name, (label, color, style) in LINES.items():
        rates = methods[name]["settings"]["lr"]
        bands = [quartiles(seeds) for seeds in ACCURACY.scores(methods[name])]
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
