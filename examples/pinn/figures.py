"""Figures of a finished run: fields, curves, unknowns, layer scales, loss terms."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import stablegrad_optax as sg
from examples.common.runs import Run
from examples.pinn.config import Config
from examples.pinn.problems.problem import Problem
from examples.pinn.run import params_of
from examples.pinn.scores import SCORE, best_rate, final_scores
from examples.pinn.train import fields

HIGHEST = 10.0
"""Errors above are cut off in the figure of curves: a failed run may have any error."""

History = Sequence[dict[str, Any]]
"""The lines of history.jsonl."""


def draw(run: Run, config: Config) -> list[Path]:
    """The figures of a run, into its folder."""
    errors, history = final_scores(run.metrics), list(run.history())
    rate = best_rate(errors)
    problem = config.find_problem()
    figures = {
        "curves.png": _curves(config, history),
        "layer_scales.png": _scales(config, history, rate),
    }
    if problem.dimension <= 3:
        seed = int(np.argsort(errors[rate])[config.seeds // 2])
        figures["field.png"] = _field(run, config, rate, seed)
    if problem.unknowns:
        figures["unknowns.png"] = _unknowns(config, history, rate)
    # L-BFGS has one loss.
    of_terms = [entry for entry in history if entry["term_scales"]]
    if of_terms:
        figures["terms.png"] = _terms(config, of_terms, rate)
    for name, figure in figures.items():
        figure.savefig(run.path / name, dpi=120)
        plt.close(figure)
    return [run.path / name for name in figures]


def curves(ax, history: History, key: str, rate: int, color, label: str) -> None:
    """A quantity over time: a thin line for each seed, a thick one for the median."""
    steps = [entry["step"] for entry in history]
    values = np.array([entry[key][rate] for entry in history], float)
    ax.plot(steps, values, color=color, linewidth=0.7, alpha=0.5)
    ax.plot(steps, np.median(values, axis=1), color=color, linewidth=2, label=label)
    ax.set(yscale="log", xlabel="step")
    ax.grid(which="both", alpha=0.2)


def on_grid(run: Run, config: Config, rate: int, seed: int) -> dict[str, np.ndarray]:
    """The fields of one column on the problem's grid; NaN outside the domain."""
    problem = config.find_problem()
    grid = problem.grid()
    found = fields(config, params_of(run, config, rate, seed), grid)
    inside = np.asarray(problem.domain.contains(grid))
    return {
        name: np.where(inside, u, np.nan).reshape(problem.resolution)
        for name, u in found.items()
    }


def image(ax, problem: Problem, u: np.ndarray, limit: float, title: str) -> Any:
    """A field over the first two coordinates, its colours from -limit to limit."""
    x, y = places = _places(problem)
    lower, upper = problem.domain.lower, problem.domain.upper
    _label(ax, problem, title)
    return ax.imshow(
        u.transpose(places[::-1]),
        origin="lower",
        aspect=ax.get_aspect(),
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        extent=(lower[x], upper[x], lower[y], upper[y]),
    )


def _label(ax, problem: Problem, title: str) -> None:
    x, y = (problem.coordinates[place] for place in _places(problem))
    # Two coordinates of space have one unit.
    aspect = "auto" if "t" in (x, y) else "equal"
    ax.set(title=title, xlabel=x, ylabel=y, aspect=aspect)


def _places(problem: Problem) -> tuple[int, int]:
    """The coordinates from left to right and from bottom to top: time is the first."""
    return (1, 0) if problem.coordinates[1] == "t" else (0, 1)


def _field(run: Run, config: Config, rate: int, seed: int):
    """The fields of a column, and what is wrong with them if that is known.

    A row for each field, or for each plane of three dimensions.
    """
    problem = config.find_problem()
    found = on_grid(run, config, rate, seed)
    known = problem.solution(problem.grid()) if callable(problem.exact) else {}
    has_data = isinstance(problem.exact, Mapping) and problem.dimension <= 2
    rows = list(itertools.product(found, _planes(problem)))
    columns = 3 if known else 1 + has_data
    figure, axes = plt.subplots(
        len(rows),
        columns,
        squeeze=False,
        figsize=(max(6, 4.3 * columns), 0.8 + 3.4 * len(rows)),
        layout="constrained",
    )
    score = final_scores(run.metrics)[rate, seed]
    what = "relative L2 error" if SCORE in run.metrics else "loss"
    figure.suptitle(
        f"{problem.equation}\n{in_words(config)}\nlearning rate {config.lr[rate]:g}, "
        f"seed {seed}: {what} {score:.2e}"
    )
    for (name, (index, plane)), row in zip(rows, axes, strict=True):
        u = found[name]
        where = f" {name}{plane}" if len(rows) > 1 else ""
        limit = _largest(u)
        panels = [(f"network{where}", u, limit)]
        if name in known:
            exact = np.where(np.isnan(u), np.nan, known[name].reshape(u.shape))
            limit, difference = _largest(exact), u - exact
            panels = [
                (f"network{where}", u, limit),
                (f"solution{where}", exact, limit),
                (f"network - solution{where}", difference, _largest(difference)),
            ]
        for ax, (title, values, limit) in zip(row, panels, strict=False):
            if problem.dimension == 1:
                ax.plot(problem.grid()[:, 0], values)
                ax.set(title=title, xlabel=problem.coordinates[0])
            else:
                shown = image(ax, problem, values[index], limit, title)
                figure.colorbar(shown, ax=ax)
        if has_data:
            _difference(figure, row[-1], run, config, (rate, seed), name)
    return figure


def _difference(figure, ax, run: Run, config: Config, column, name: str) -> None:
    """What is wrong with a field where the reference has data."""
    problem = config.find_problem()
    points, known = problem.reference()
    if name not in known:
        ax.set_axis_off()
        return
    found = fields(config, params_of(run, config, *column), points)
    difference, title = found[name] - known[name], f"{name}: network - reference data"
    if problem.dimension == 1:
        ax.plot(points[:, 0], difference, ".")
        ax.set(title=title, xlabel=problem.coordinates[0])
        return
    limit = _largest(difference)
    x, y = (points[:, place] for place in _places(problem))
    dots = ax.scatter(x, y, 4, difference, cmap="RdBu_r", vmin=-limit, vmax=limit)
    _label(ax, problem, title)
    figure.colorbar(dots, ax=ax)


def _planes(problem: Problem) -> list[tuple[Any, str]]:
    """The parts of a grid that are drawn: all of it, or planes of three dimensions."""
    if problem.dimension < 3:
        return [(..., "")]
    last, number = problem.coordinates[-1], problem.resolution[-1]
    axis = np.linspace(problem.domain.lower[-1], problem.domain.upper[-1], number)
    # The beginning and the end of time, and planes inside a body.
    shares = (0, 0.5, 1) if last == "t" else (0.25, 0.5, 0.75)
    places = [round(share * (number - 1)) for share in shares]
    return [((..., i), f", {last} = {axis[i]:.3g}") for i in places]


def _largest(u: np.ndarray) -> float:
    # A stopped column may have any value, infinity included.
    return float(np.max(np.abs(u), where=np.isfinite(u), initial=1e-12))


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


def _row(number: int, title: str):
    """A figure with axes side by side."""
    size = (5.5 * number, 4.2)
    figure, axes = plt.subplots(
        1, number, squeeze=False, figsize=size, layout="constrained"
    )
    figure.suptitle(title)
    return figure, axes[0]


def _curves(config: Config, history: History):
    """Error and loss of every seed and rate over time."""
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
        if config.lbfgs_steps:
            ax.axvline(config.steps, color="black", linewidth=0.8, linestyle=":")
    legend = "median; thin: seeds"
    axes[-1].legend(title=legend + "; dotted: L-BFGS begins" * bool(config.lbfgs_steps))
    return figure


def _unknowns(config: Config, history: History, rate: int):
    """The estimates of every seed over time, and what they should come to."""
    problem = config.find_problem()
    title = f"{in_words(config)}, learning rate {config.lr[rate]:g}"
    figure, axes = _row(len(problem.unknowns), title)
    steps = [entry["step"] for entry in history]
    for ax, name in zip(axes, problem.unknowns, strict=True):
        values = np.array([entry["unknowns"][name][rate] for entry in history], float)
        ax.plot(steps, values, color="tab:blue", linewidth=0.9)
        ax.set(title=f"{name}: each seed", xlabel="step")
        if name in problem.exact_unknowns:
            exact = problem.exact_unknowns[name]
            ax.axhline(exact, color="black", linestyle=":", label="exact")
            ax.legend()
    return figure


def _first_seed(history: History, key: str, rate: int) -> list[dict[str, np.ndarray]]:
    """What the lines hold by name, of one rate's first seed."""
    return [
        {name: np.array(x, float)[rate, 0] for name, x in entry[key].items()}
        for entry in history
    ]


def _scales(config: Config, history: History, rate: int):
    """Layer scales of the first seed."""
    title = f"Gradient scales, lr {config.lr[rate]:g}, seed 0"
    figure, (ax,) = _row(1, f"{in_words(config)}\n{title}")
    scales = _first_seed(history, "layer_scales", rate)
    steps = [entry["step"] for entry in history]
    sg.plotting.plot_layer_scales(scales, steps=steps, ax=ax)
    return figure


def _terms(config: Config, history: History, rate: int):
    """Scales of the loss terms and cosines between them, of the first seed."""
    title = f"{in_words(config)}\nLoss terms, lr {config.lr[rate]:g}, seed 0"
    figure, (left, right) = _row(2, title)
    scales = _first_seed(history, "term_scales", rate)
    steps = [entry["step"] for entry in history]
    sg.plotting.plot_term_scales(scales, steps=steps, ax=left)
    pairs = list(itertools.combinations(scales[0], 2))
    for one, other in pairs:
        cosines = [entry["term_alignment"][one][other][rate][0] for entry in history]
        right.plot(steps, np.array(cosines, float), label=f"{one} and {other}")
    right.axhline(0, color="black", linewidth=0.8)
    # Room for the legend, two pairs in a row.
    lowest = -1.1 - 0.1 * len(pairs)
    right.set(xlabel="step", ylabel="cosine; below 0: in conflict", ylim=(lowest, 1.05))
    right.legend(loc="lower center", ncols=2)
    return figure
