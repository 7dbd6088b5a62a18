"""Figures of a finished run: fields, curves, unknowns, layer scales, loss terms."""

import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import stablegrad_optax as sg
from examples.common.runs import Run
from examples.pinn.config import Config
from examples.pinn.problems.problem import Problem
from examples.pinn.studies import SCORE, best_rate, final_scores
from examples.pinn.train import fields

HIGHEST = 10.0
"""Errors above are cut off in the figure of curves: a failed run may have any error."""

History = Sequence[dict[str, Any]]
"""The lines of history.jsonl."""


def draw(run: Run, config: Config) -> list[Path]:
    """The figures of a run, into its folder."""
    scores, history = final_scores(run.metrics), list(run.history())
    problem, rate = config.find_problem(), best_rate(scores)
    title = f"{in_words(config)}\nlearning rate {config.lr[rate]:g}"
    figures = {
        "curves.png": _curves(config, history),
        "layer_scales.png": _layer_scales(title, history, rate),
    }
    if problem.dimension <= 3:
        seed = int(np.argsort(scores[rate])[config.seeds // 2])
        what = "relative L2 error" if SCORE in run.metrics else "loss"
        figures["field.png"] = _field(run, config, rate, seed)
        figures["field.png"].suptitle(
            f"{problem.equation}\n{title}, seed {seed}: {what} {scores[rate, seed]:.2e}"
        )
    if problem.unknowns:
        figures["unknowns.png"] = _unknowns(title, problem, history, rate)
    # L-BFGS has one loss.
    if of_terms := [entry for entry in history if entry["term_scales"]]:
        figures["terms.png"] = _terms(title, of_terms, rate)
    for name, figure in figures.items():
        figure.savefig(run.path / name, dpi=120)
        plt.close(figure)
    return [run.path / name for name in figures]


def in_words(config: Config) -> str:
    """Problem, network and method, for a title."""
    order = [config.scale_control, config.optimizer]
    if config.order == "after":
        order.reverse()
    method = " + ".join(part for part in order if part != "none")
    terms = f"{config.terms} terms"
    if config.terms == "weighted":
        terms = f"weight {config.condition_weight:g}"
    name = config.find_problem().name
    return f"{name}: {config.depth} layers of {config.width}, {method}, {terms}"


# --- Fields ---


def on_grid(run: Run, config: Config, rate: int, seed: int) -> dict[str, np.ndarray]:
    """The fields of one column on the problem's grid; NaN outside the domain."""
    problem = config.find_problem()
    grid = problem.grid()
    found = fields(run, config, rate, seed, grid)
    inside = np.asarray(problem.domain.contains(grid))
    return {
        name: np.where(inside, u, np.nan).reshape(problem.resolution)
        for name, u in found.items()
    }


def picture(
    ax,
    problem: Problem,
    points: np.ndarray,
    values: np.ndarray,
    title: str,
    limit: float | None = None,
) -> Any:
    """Values at scattered points or on a plane of a grid, over two coordinates.

    Colours are from -limit to limit, by default the largest magnitude.
    """
    across, *others = problem.coordinates[:2]
    if not others:
        ax.set(title=title, xlabel=across)
        ax.plot(points[..., 0], values, ".", markersize=2)
        return None
    # Time is from left to right.
    x, y = (1, 0) if others == ["t"] else (0, 1)
    xlabel, ylabel = problem.coordinates[x], problem.coordinates[y]
    # Two coordinates of space have one unit.
    aspect = "auto" if "t" in (xlabel, ylabel) else "equal"
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, aspect=aspect)
    if limit is None:
        # A stopped column may have any value, infinity included.
        limit = np.max(np.abs(values), where=np.isfinite(values), initial=1e-12)
    colors: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    if values.ndim == 1:
        return ax.scatter(points[:, x], points[:, y], 4, values, **colors)
    return ax.pcolormesh(points[..., x], points[..., y], values, **colors)


def _field(run: Run, config: Config, rate: int, seed: int):
    """The fields of a column, and what is wrong with them if that is known.

    A row for each field, or for each plane of three dimensions.
    """
    problem, found = config.find_problem(), on_grid(run, config, rate, seed)
    exact: dict[str, np.ndarray] = {}
    data: dict[str, np.ndarray] = {}
    places = problem.grid()
    points = places.reshape(*problem.resolution, -1)
    if callable(problem.exact):
        exact = problem.solution(places)
    elif isinstance(problem.exact, Mapping) and problem.dimension < 3:
        places, data = problem.reference()
        at_data = fields(run, config, rate, seed, places)
    rows = list(itertools.product(found, _planes(problem)))
    columns = 3 if exact else 1 + bool(data)
    size = max(6, 4.3 * columns), 0.8 + 3.4 * len(rows)
    figure, axes = plt.subplots(
        len(rows), columns, squeeze=False, figsize=size, layout="constrained"
    )
    for (name, (plane, index)), row in zip(rows, axes, strict=True):
        u, where = found[name][index], f" {name}{plane}" if len(rows) > 1 else ""
        panels = {"network": (points[index], u)}
        if name in exact:
            # NaN outside the domain.
            solution = np.where(
                np.isnan(u), u, exact[name].reshape(problem.resolution)[index]
            )
            panels["solution"] = points[index], solution
            panels["network - solution"] = points[index], u - solution
        if name in data:
            panels["network - reference data"] = places, at_data[name] - data[name]
        for ax, (what, (at, values)) in zip(row, panels.items(), strict=False):
            if shown := picture(ax, problem, at, values, what + where):
                figure.colorbar(shown, ax=ax)
        for ax in row[len(panels) :]:
            ax.set_axis_off()
    return figure


def _planes(problem: Problem) -> list[tuple[str, Any]]:
    """The parts of a grid that are drawn: all of it, or planes of three dimensions."""
    if problem.dimension < 3:
        return [("", ...)]
    last, number = problem.coordinates[-1], problem.resolution[-1]
    axis = np.linspace(problem.domain.lower[-1], problem.domain.upper[-1], number)
    # The beginning and the end of time, and planes inside a body.
    shares = (0, 0.5, 1) if last == "t" else (0.25, 0.5, 0.75)
    places = [round(share * (number - 1)) for share in shares]
    return [
        (f", {last} = {axis[i]:.3g}", (slice(None), slice(None), i)) for i in places
    ]


# --- What happened over the steps ---


def series(history: History, *keys: str) -> np.ndarray:
    """A quantity by step, rate and seed."""
    entries = (functools.reduce(operator.getitem, keys, entry) for entry in history)
    return np.array(list(entries), float)


def curves(ax, history: History, key: str, rate: int, color, label: str) -> None:
    """A quantity over time: a thin line for each seed, a thick one for the median."""
    steps, values = series(history, "step"), series(history, key)[:, rate]
    ax.plot(steps, values, color=color, linewidth=0.7, alpha=0.5)
    ax.plot(steps, np.median(values, axis=1), color=color, linewidth=2, label=label)
    ax.set(yscale="log", xlabel="step")
    ax.grid(which="both", alpha=0.2)


def _row(number: int, title: str):
    """A figure with axes side by side."""
    size = (5.5 * number, 4.2)
    figure, axes = plt.subplots(
        1, number, squeeze=False, figsize=size, layout="constrained"
    )
    figure.suptitle(title)
    return figure, axes[0]


def _curves(config: Config, history: History):
    """Error and loss of every seed and rate."""
    labels = {SCORE: "relative L2 error", "loss": "loss"}
    keys = [key for key in labels if key in history[0]]
    figure, axes = _row(len(keys), in_words(config))
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(config.lr)))
    for ax, key in zip(axes, keys, strict=True):
        for rate, (lr, color) in enumerate(zip(config.lr, colors, strict=True)):
            curves(ax, history, key, rate, color, f"lr {lr:g}")
        ax.set(ylabel=labels[key])
        if key == SCORE:
            ax.set(ylim=(None, min(ax.get_ylim()[1], HIGHEST)))
        if config.all_steps > config.steps:
            label = "Gauss-Newton" if config.gauss_newton_steps else "L-BFGS"
            ax.axvline(config.steps, color="black", linestyle=":", label=label)
    axes[-1].legend(title="median; thin: seeds")
    return figure


def _unknowns(title: str, problem: Problem, history: History, rate: int):
    """The estimates of every seed, and what they should come to."""
    figure, axes = _row(len(problem.unknowns), title)
    for ax, name in zip(axes, problem.unknowns, strict=True):
        values = series(history, "unknowns", name)[:, rate]
        ax.plot(series(history, "step"), values, color="tab:blue", linewidth=0.9)
        ax.set(title=f"{name}: each seed", xlabel="step")
        if name in problem.exact_unknowns:
            exact = problem.exact_unknowns[name]
            ax.axhline(exact, color="black", linestyle=":", label="exact")
            ax.legend()
    return figure


def _first_seed(history: History, key: str, rate: int) -> list[dict[str, float]]:
    """What the lines hold by name, of one rate's first seed."""
    by_name = {name: series(history, key, name)[:, rate, 0] for name in history[0][key]}
    return [
        dict(zip(by_name, x, strict=True)) for x in zip(*by_name.values(), strict=True)
    ]


def _layer_scales(title: str, history: History, rate: int):
    figure, (ax,) = _row(1, f"{title}, seed 0: gradient scales")
    scales = _first_seed(history, "layer_scales", rate)
    steps = list(series(history, "step"))
    sg.plotting.plot_layer_scales(scales, steps=steps, ax=ax)
    return figure


def _terms(title: str, history: History, rate: int):
    """Scales and weights of the loss terms and cosines between them, of one seed."""
    figure, (left, middle, right) = _row(3, f"{title}, seed 0: loss terms")
    scales, weights = (
        _first_seed(history, key, rate) for key in ("term_scales", "term_weights")
    )
    steps = list(series(history, "step"))
    sg.plotting.plot_term_scales(scales, steps=steps, ax=left)
    for name in weights[0]:
        values = np.array([entry[name] for entry in weights])
        # A term that adds nothing has no place on a logarithmic axis.
        middle.semilogy(steps, np.where(values > 0, values, np.nan), label=name)
    middle.set(xlabel="step", ylabel="weight of the term's gradient")
    middle.grid(alpha=0.3)
    pairs = list(itertools.combinations(scales[0], 2))
    for pair in pairs:
        cosines = series(history, "term_alignment", *pair)[:, rate, 0]
        right.plot(steps, cosines, label=" and ".join(pair))
    right.axhline(0, color="black", linewidth=0.8)
    # Room for the legend, two pairs in a row.
    lowest = -1.1 - 0.1 * len(pairs)
    right.set(xlabel="step", ylabel="cosine; below 0: in conflict", ylim=(lowest, 1.05))
    right.legend(loc="lower center", ncols=2)
    return figure
