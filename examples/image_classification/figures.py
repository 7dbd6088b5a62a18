"""Figures of a finished run: its curves and layer scales."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

import stablegrad_optax as sg
from examples.common.runs import Run


def draw(run: Run) -> list[Path]:
    """The figures of a run, into its folder."""
    history = list(run.history())
    drawn = []
    for name, figure in (
        ("curves.png", _curves(run, history)),
        ("layer_scales.png", _scales(run, history)),
    ):
        path = run.path / name
        figure.savefig(path, dpi=120)
        plt.close(figure)
        drawn.append(path)
    return drawn


def _curves(run: Run, history: Sequence[dict[str, Any]]):
    """Loss of the steps, and accuracies after each epoch."""
    settings = run.settings
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    norm = "BatchNorm" if settings["norm"] == "batch" else "no BatchNorm"
    figure.suptitle(
        f"{settings['model']}, {norm}, {settings['scale_control']} + "
        f"{settings['optimizer']}, lr {settings['lr']:g}, {settings['data']}"
    )
    steps = [entry["step"] for entry in history]
    losses = np.array([entry["loss"] for entry in history], float)
    left.plot(steps, losses)
    left.set(yscale="log", xlabel="step", ylabel="training loss")
    left.grid(which="both", alpha=0.2)
    epochs = [entry for entry in history if "epoch" in entry]
    for key, label in (("train_accuracy", "training"), ("test_accuracy", "test")):
        values = np.array([entry[key] for entry in epochs], float)
        right.plot([entry["epoch"] for entry in epochs], values, "o-", label=label)
    if epochs:
        last = epochs[-1]["test_accuracy"]
        right.set_title(f"test accuracy {last:.4f}", fontsize="medium")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(ylim=(0, 1.02), xlabel="epoch", ylabel="accuracy")
    right.grid(alpha=0.2)
    right.legend(loc="lower right")
    return figure


def _scales(run: Run, history: Sequence[dict[str, Any]]):
    """Layer scales over depth and time."""
    scales = [
        {layer: float(np.float64(x)) for layer, x in entry["layer_scales"].items()}
        for entry in history
    ]
    layers = in_order(scales[0])
    figure, ax = plt.subplots(
        figsize=(8, max(4.0, 0.07 * len(layers) + 1.5)), layout="constrained"
    )
    sg.plotting.plot_layer_scales(
        scales, steps=[entry["step"] for entry in history], layers=layers, ax=ax
    )
    ax.set_title(f"{run.name}: gradient scales before they are rescaled")
    return figure


def in_order(layers: Any) -> list[str]:
    """Layers as an image passes them: stem, blocks by number, head, classifier."""
    parts = ("stem", "blocks", "head", "classifier")

    def key(layer: str) -> tuple:
        first, *rest = layer.split("/")
        place = parts.index(first) if first in parts else len(parts)
        return place, [(not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in rest]

    return sorted(layers, key=key)
