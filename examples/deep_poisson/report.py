"""What a comparison looks like: live progress, a table, a figure and a JSON file."""

import dataclasses
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib import colors
from rich import box
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

import stablegrad_optax as sg
from examples.deep_poisson import problem
from examples.deep_poisson.train import RESOLUTION, Config, Result

TRAINED = 0.1
"""A run counts as trained below this relative L2 error; u = 0 has error 1."""

LAYERS = ("params/first", "params/hidden/dense", "params/last")


def progress_bar() -> Progress:
    """One line for each method: steps, time left and the current error per seed."""
    return Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[errors]}"),
    )


def format_errors(errors: np.ndarray) -> str:
    return "  ".join(f"{error:.3f}" for error in errors)


def table(config: Config, results: Mapping[str, Result]) -> Table:
    rendered = Table(
        title=f"Poisson 2-D, {config.depth} tanh layers of width {config.width}, "
        f"{config.steps} steps at learning rate {config.lr:g}",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,  # eight columns on a terminal of 80
        pad_edge=False,
    )
    rendered.caption = "relative L2 error against the exact solution; u = 0 has error 1"
    rendered.add_column("method", no_wrap=True)
    for seed in range(config.seeds):
        rendered.add_column(f"seed {seed}", justify="right", no_wrap=True)
    for column in ("median", f"< {TRAINED}", "steps/s", "compile"):
        rendered.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        errors = result.errors
        rendered.add_row(
            name,
            *(f"{error:.3f}" for error in errors),
            f"{np.median(errors):.3f}",
            f"{np.sum(errors < TRAINED)}/{config.seeds}",
            f"{result.steps_per_second:.1f}",
            f"{result.compile_seconds:.1f} s",
        )
    return rendered


def write_json(path: Path, config: Config, results: Mapping[str, Result]) -> None:
    """Settings, versions and raw values, from which the figure can be drawn again."""
    record = {
        "config": dataclasses.asdict(config),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "optax": optax.__version__,
            "stablegrad_optax": sg.__version__,
        },
        "device": str(jax.devices()[0]),
        "dtype": "float32",
        "methods": {
            name: {
                "relative_l2": result.errors.tolist(),
                "steps_per_second": result.steps_per_second,
                "compile_seconds": result.compile_seconds,
                "steps": [progress.step for progress in result.history],
                "error_history": [p.errors.tolist() for p in result.history],
            }
            for name, result in results.items()
        },
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def draw(path: Path, config: Config, results: Mapping[str, Result]) -> None:
    """Errors and layer scales over time above, fields below."""
    plain, controlled = results["adam"], results["StableGrad + adam"]
    # The seed on which plain adam does worst shows what there is to be mended.
    seed = int(np.argmax(np.nan_to_num(plain.errors, nan=np.inf)))
    figure = plt.figure(figsize=(13, 7.5), layout="constrained")
    figure.suptitle(
        f"A PINN of {config.depth} tanh layers without residual connections, "
        f"{config.steps} steps, learning rate {config.lr:g}"
    )
    upper, lower = cast(Any, figure.subfigures(2, 1, height_ratios=(1.1, 1)))
    axes = list(upper.subplots(1, 3, width_ratios=(1.1, 1, 1)))
    _draw_errors(axes[0], results)
    _draw_scales(axes[1:], {"adam": plain, "StableGrad + adam": controlled}, seed)
    panels = {
        f"adam, seed {seed}: error {plain.errors[seed]:.3f}": plain.fields[seed],
        f"StableGrad + adam, seed {seed}: error {controlled.errors[seed]:.3f}": (
            controlled.fields[seed]
        ),
        "exact solution": np.asarray(problem.exact(problem.grid(RESOLUTION))),
    }
    _draw_fields(lower, panels)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_errors(ax, results: Mapping[str, Result]) -> None:
    palette = ("tab:red", "tab:gray", "tab:blue")
    for (name, result), color in zip(results.items(), palette, strict=True):
        steps = [progress.step for progress in result.history]
        errors = np.stack([progress.errors for progress in result.history])
        ax.plot(steps, errors, color=color, linewidth=0.7, alpha=0.6)
        ax.plot(steps, np.median(errors, axis=1), color=color, linewidth=2, label=name)
    ax.set(
        yscale="log",
        xlabel="step",
        ylabel="relative L2 error",
        title="Error: each seed, and the median",
    )
    ax.legend(loc="lower left")
    ax.grid(which="both", alpha=0.2)


def _draw_scales(axes, results: Mapping[str, Result], seed: int) -> None:
    histories = {
        name: [
            {layer: scale[seed] for layer, scale in progress.scales.items()}
            for progress in result.history
        ]
        for name, result in results.items()
    }
    everything = np.concatenate(
        [
            np.ravel(scale)
            for h in histories.values()
            for step in h
            for scale in step.values()
        ]
    )
    seen = everything[np.isfinite(everything) & (everything > 0)]
    limits = (float(np.quantile(seen, 0.01)), float(np.quantile(seen, 0.99)))
    for ax, (name, history) in zip(axes, histories.items(), strict=True):
        steps = [progress.step for progress in results[name].history]
        last = ax is axes[-1]
        sg.plotting.plot_layer_scales(
            history, steps=steps, layers=LAYERS, ax=ax, limits=limits, colorbar=last
        )
        depth = sum(np.size(scale) for scale in history[0].values())
        ax.set_yticks([0, depth - 1], ["input layer", "output layer"])
        ax.set_title(
            f"Gradient scales from backprop\nin training by {name}, seed {seed}"
        )
        if not last:
            continue
        ax.set_yticks([])


def _draw_fields(figure, panels: Mapping[str, np.ndarray]) -> None:
    axes = figure.subplots(1, len(panels))
    norm = colors.Normalize(-1, 1)
    for ax, (title, field) in zip(axes, panels.items(), strict=True):
        image = ax.imshow(
            field, norm=norm, cmap="RdBu_r", extent=(-1, 1, -1, 1), origin="lower"
        )
        ax.set_title(title)
    figure.colorbar(image, ax=axes, label="u(x, y)", shrink=0.9)
