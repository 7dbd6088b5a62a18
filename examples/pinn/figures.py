"""Figures of a finished run: its field, curves, layer scales and loss terms."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import stablegrad_optax as sg
from examples.common.runs import Run
from examples.pinn.config import Config
from examples.pinn.problems import PROBLEMS, Problem
from examples.pinn.run import params_of
from examples.pinn.scores import ERROR, final_errors
from examples.pinn.train import field

HIGHEST = 10.0
"""Errors above are cut off in the figure of curves: a failed run may have any error."""

History = Sequence[dict[str, Any]]
"""The lines of history.jsonl."""


def draw(run: Run, config: Config) -> list[Path]:
    """The figures of a run, into its folder."""
    errors, history = final_errors(run.metrics), list(run.history())
    rate = ERROR.best_rate(errors)
    drawn = []
    figures = {
        "field.png": _field(run, config, errors, rate),
        "curves.png": _curves(run, config, history),
        "layer_scales.png": _scales(run, config, history, rate),
    }
    # L-BFGS has one loss, and older runs have not recorded its terms.
    of_terms = [entry for entry in history if entry.get("term_scales")]
    if of_terms:
        figures["terms.png"] = _terms(run, config, of_terms, rate)
    for name, figure in figures.items():
        path = run.path / name
        figure.savefig(path, dpi=120)
        plt.close(figure)
        drawn.append(path)
    return drawn


def curves(ax, history: History, key: str, rate: int, color, label: str) -> None:
    """A quantity over time: a thin line for each seed, a thick one for the median."""
    steps = [entry["step"] for entry in history]
    values = np.array([entry[key][rate] for entry in history], float)
    ax.plot(steps, values, color=color, linewidth=0.7, alpha=0.5)
    ax.plot(steps, np.median(values, axis=1), color=color, linewidth=2, label=label)
    ax.set(yscale="log", xlabel="step")
    ax.grid(which="both", alpha=0.2)


def scales(ax, history: History, rate: int, seed: int, **options: Any) -> None:
    """The layer scales of one column over depth and time."""
    sg.plotting.plot_layer_scales(
        [scales_at(entry, rate, seed) for entry in history],
        steps=[entry["step"] for entry in history],
        ax=ax,
        **options,
    )


def scales_at(entry: dict[str, Any], rate: int, seed: int) -> dict[str, np.ndarray]:
    """The layer scales of one column in a line of the history."""
    layers = entry["layer_scales"].items()
    return {layer: np.array(values, float)[rate, seed] for layer, values in layers}


def on_grid(run: Run, config: Config, rate: int, seed: int) -> np.ndarray:
    """The u of one column on the grid of the problem."""
    params = params_of(run, config, rate, seed)
    return field(config, params, PROBLEMS[config.problem].grid())


def image(ax, problem: Problem, u: np.ndarray, limit: float, title: str) -> Any:
    """A field on the grid of a problem, its colours from -limit to limit."""
    (left, bottom), (right, top) = problem.lower, problem.upper
    ax.set(title=title, xlabel=problem.coordinates[0], ylabel=problem.coordinates[1])
    return ax.imshow(
        u.reshape(problem.resolution).T,
        origin="lower",
        aspect="auto",
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        extent=(left, right, bottom, top),
    )


def _field(run: Run, config: Config, errors: np.ndarray, rate: int):
    """Prediction, solution and error of the median seed."""
    problem = PROBLEMS[config.problem]
    seed = int(np.argsort(errors[rate])[config.seeds // 2])
    predicted, exact = on_grid(run, config, rate, seed), problem.exact(problem.grid())
    difference = predicted - exact
    bound = float(np.abs(exact).max())
    # A stopped column may have any value, infinity included.
    finite = np.isfinite(difference)
    worst = float(np.max(np.abs(difference), where=finite, initial=1e-12))
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    figure.suptitle(
        f"{problem.equation}   {config.depth} layers, {config.scale_control} + "
        f"{config.optimizer}, lr {config.lr[rate]:g}, seed {seed}: relative L2 error "
        f"{errors[rate, seed]:.2e}"
    )
    for ax, u, limit, title in (
        (axes[0], predicted, bound, "network"),
        (axes[1], exact, bound, "solution"),
        (axes[2], difference, worst, "network - solution"),
    ):
        if problem.dimension == 1:
            ax.plot(problem.grid(), u)
            ax.set(title=title, xlabel=problem.coordinates[0])
        else:
            figure.colorbar(image(ax, problem, u, limit, title), ax=ax)
    return figure


def _curves(run: Run, config: Config, history: History):
    """Error and loss of every seed and rate over time."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(run.name)
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(config.lr)))
    for rate, (lr, color) in enumerate(zip(config.lr, colors, strict=True)):
        curves(left, history, "relative_l2", rate, color, f"lr {lr:g}")
        curves(right, history, "loss", rate, color, f"lr {lr:g}")
    left.set(ylabel="relative L2 error", ylim=(None, min(left.get_ylim()[1], HIGHEST)))
    right.set(ylabel="loss")
    left.legend(title="median; thin: seeds; dotted: L-BFGS begins")
    if config.lbfgs_steps:
        for ax in (left, right):
            ax.axvline(config.steps, color="black", linewidth=0.8, linestyle=":")
    return figure


def _scales(run: Run, config: Config, history: History, rate: int):
    """Layer scales of the first seed."""
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    scales(ax, history, rate, seed=0)
    ax.set_title(f"{run.name}: gradient scales, lr {config.lr[rate]:g}, seed 0")
    return figure


def _terms(run: Run, config: Config, history: History, rate: int):
    """Scales of the loss terms and cosines between them, of the first seed."""

    def column(values: Any) -> float:
        return float(np.array(values, float)[rate, 0])

    names = sorted(history[0]["term_scales"])
    steps = [entry["step"] for entry in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(f"{run.name}: loss terms, lr {config.lr[rate]:g}, seed 0")
    sg.plotting.plot_term_scales(
        [[column(entry["term_scales"][name]) for name in names] for entry in history],
        terms=names,
        steps=steps,
        ax=left,
    )
    for one, other in itertools.combinations(names, 2):
        cosines = [column(entry["term_alignment"][one][other]) for entry in history]
        right.plot(steps, cosines, label=f"{one} and {other}")
    right.axhline(0, color="black", linewidth=0.8)
    right.set(xlabel="step", ylabel="cosine; below 0: in conflict", ylim=(-1.4, 1.05))
    right.legend(loc="lower center", ncols=2)
    return figure
