"""Figures of a finished run: its curves and layer scales."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

import stablegrad_optax as sg
from examples.common.runs import Run

PARTS = ("stem", "blocks", "head", "classifier")


def draw(run: Run) -> list[Path]:
    """The figures of a run, into its folder."""
    history = list(run.history())
    figures = {
        run.path / "curves.png": _curves(run.settings, history),
        run.path / "layer_scales.png": _scales(run.name, history),
    }
    for path, figure in figures.items():
        figure.savefig(path, dpi=120)
        plt.close(figure)
    return list(figures)


def _curves(settings: dict[str, Any], history: Sequence[dict[str, Any]]):
    """Loss of the steps, and accuracies after each epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    norm = "BatchNorm" if settings["norm"] == "batch" else "no BatchNorm"
    figure.suptitle(
        f"{settings['model']}, {norm}, {settings['scale_control']} + "
        f"{settings['optimizer']}, lr {settings['lr']:g}, {settings['data']}"
    )
    # null in JSON is NaN here.
    losses = np.array([entry["loss"] for entry in history], float)
    left.semilogy([entry["step"] for entry in history], losses)
    left.set(xlabel="step", ylabel="training loss")
    left.grid(which="both", alpha=0.2)
    epochs = [entry for entry in history if "epoch" in entry]
    for name in ("train_accuracy", "test_accuracy"):
        values = np.array([entry[name] for entry in epochs], float)
        right.plot([entry["epoch"] for entry in epochs], values, "o-", label=name)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(ylim=(0, 1.02), xlabel="epoch", ylabel="accuracy")
    right.grid(alpha=0.2)
    right.legend(loc="lower right")
    return figure


def _scales(name: str, history: Sequence[dict[str, Any]]):
    """Layer scales over depth and time."""
    scales = [
        {layer: float(np.float64(x)) for layer, x in entry["layer_scales"].items()}
        for entry in history
    ]
    layers = in_order(scales[0])
    height = max(4.0, 0.07 * len(layers) + 1.5)
    figure, ax = plt.subplots(figsize=(8, height), layout="constrained")
    steps = [entry["step"] for entry in history]
    sg.plotting.plot_layer_scales(scales, steps=steps, layers=layers, ax=ax)
    ax.set_title(f"{name}: gradient scales before they are rescaled")
    return figure


def in_order(layers: Iterable[str]) -> list[str]:
    """Layers in forward order: stem, blocks by number, head, classifier."""

    def place(layer: str) -> tuple:
        part, *rest = layer.split("/")
        return PARTS.index(part), [int(x) if x.isdigit() else x for x in rest]

    return sorted(layers, key=place)
