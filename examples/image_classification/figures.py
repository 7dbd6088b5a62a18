"""Figures of a finished run: its curves and layer scales."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import stablegrad_optax as sg
from examples.common.runs import Run

PARTS = ("stem", "blocks", "head", "classifier")


def draw(run: Run) -> list[Path]:
    """The figures of a run, into its folder."""
    history, settings = list(run.history()), run.settings
    norm = "BatchNorm" if settings["norm"] == "batch" else "no BatchNorm"
    curves, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    curves.suptitle(
        f"{settings['model']}, {norm}, {settings['scale_control']} + "
        f"{settings['optimizer']}, lr {settings['lr']:g}, {settings['data']}"
    )
    for ax, name, label, style in (
        (left, "loss", "", "-"),
        (right, "train_accuracy", "training images", "-"),
        (right, "test_accuracy", "test images", "o-"),
    ):
        known = [entry for entry in history if name in entry]
        # null in JSON is NaN here.
        values = np.array([entry[name] for entry in known], float)
        ax.plot([entry["step"] for entry in known], values, style, label=label)
    left.set(yscale="log", xlabel="step", ylabel="training loss")
    right.set(ylim=(0, 1.02), xlabel="step", ylabel="accuracy")
    right.legend(loc="lower right")

    scales = [
        {layer: float(np.float64(x)) for layer, x in entry["layer_scales"].items()}
        for entry in history
    ]
    layers = sorted(scales[0], key=_place)
    height = max(4.0, 0.07 * len(layers) + 1.5)
    over_depth, ax = plt.subplots(figsize=(8, height), layout="constrained")
    steps = [entry["step"] for entry in history]
    sg.plotting.plot_layer_scales(scales, steps=steps, layers=layers, ax=ax)
    ax.set_title(f"{run.name}: gradient scales before they are rescaled")

    figures = {"curves.png": curves, "layer_scales.png": over_depth}
    for name, figure in figures.items():
        figure.savefig(run.path / name, dpi=120)
        plt.close(figure)
    return [run.path / name for name in figures]


def _place(layer: str) -> tuple[int, list[Any]]:
    """Stem, blocks by number, head, classifier."""
    part, *rest = layer.split("/")
    return PARTS.index(part), [int(x) if x.isdigit() else x for x in rest]
