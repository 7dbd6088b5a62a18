"""Figures of a finished run: fields, curves, unknowns, layer scales, loss terms."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np

import stablegrad_optax as sg
from examples.common.runs import Run
from examples.pinn.config import Config
from examples.pinn.problems import Problem
from examples.pinn.run import params_of
from examples.pinn.scores import ERROR, SCORE, final_errors
from examples.pinn.train import fields

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
        "curves.png": _curves(run, config, history),
        "layer_scales.png": _scales(run, config, history, rate),
    }
    problem = config.find_problem()
    if problem.dimension <= 3:
        figures["field.png"] = _field(run, config, errors, rate)
    if problem.dimension <= 2 and isinstance(problem.exact, Mapping):
        figures["difference.png"] = _difference(run, config, errors, rate)
    if history[0].get("unknowns"):
        figures["unknowns.png"] = _unknowns(config, history, rate)
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


def on_grid(run: Run, config: Config, rate: int, seed: int) -> dict[str, np.ndarray]:
    """The fields of one column on the problem's grid; NaN outside the domain."""
    problem = config.find_problem()
    grid = problem.grid()
    found = fields(config, params_of(run, config, rate, seed), grid)
    inside = np.asarray(problem.domain.contains(grid))
    return {name: np.where(inside, u, np.nan) for name, u in found.items()}


def image(ax, problem: Problem, u: np.ndarray, limit: float, title: str) -> Any:
    """A field over the first two coordinates, its colours from -limit to limit."""
    places = _places(problem)
    x, y = (
        (problem.domain.lower[i], problem.domain.upper[i], problem.coordinates[i])
        for i in places
    )
    ax.set(title=title, xlabel=x[2], ylabel=y[2])
    return ax.imshow(
        u.transpose(places[::-1]),
        origin="lower",
        aspect=_aspect(problem),
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        extent=(*x[:2], *y[:2]),
    )


def _field(run: Run, config: Config, errors: np.ndarray, rate: int):
    """The fields of the median seed, and what is wrong with them if that is known."""
    problem = config.find_problem()
    seed = _median_seed(errors, rate)
    shown = _shown(problem, on_grid(run, config, rate, seed))
    slices = _slices(problem)
    rows = [(name, *row) for name, panels in shown.items() for row in panels]
    if len(slices) == 1:  # what belongs to a field side by side
        rows_of_axes, columns = len(shown), len(rows) // len(shown)
    else:
        rows_of_axes, columns = len(rows), len(slices)
    figure, axes = plt.subplots(
        rows_of_axes,
        columns,
        squeeze=False,
        figsize=(max(6, 4.3 * columns), 0.8 + 3.4 * rows_of_axes),
        layout="constrained",
    )
    figure.suptitle(_title(run, config, errors, rate))
    panels = [
        (f"{title} {name}" if len(shown) > 1 else title, u[index], limit, label)
        for name, title, u, limit in rows
        for index, label in slices
    ]
    for ax, (title, u, limit, label) in zip(axes.flat, panels, strict=True):
        title = f"{title}, {label}" if label else title
        if problem.dimension == 1:
            ax.plot(problem.grid(), u)
            ax.set(title=title, xlabel=problem.coordinates[0])
        else:
            figure.colorbar(image(ax, problem, u, limit, title), ax=ax)
    return figure


def _difference(run: Run, config: Config, errors: np.ndarray, rate: int):
    """What is wrong with the median seed's fields, where the reference has data."""
    problem = config.find_problem()
    points, known = problem.reference()
    params = params_of(run, config, rate, _median_seed(errors, rate))
    found = fields(config, params, points)
    figure, axes = plt.subplots(
        1,
        len(known),
        squeeze=False,
        figsize=(max(6, 5 * len(known)), 5),
        layout="constrained",
    )
    figure.suptitle(_title(run, config, errors, rate))
    for ax, (name, reference) in zip(axes.flat, known.items(), strict=True):
        difference = found[name] - reference
        title = f"{name}: network - reference data"
        if problem.dimension == 1:
            ax.plot(points[:, 0], difference, ".")
            ax.set(title=title, xlabel=problem.coordinates[0])
            continue
        limit = _largest(difference)
        x, y = _places(problem)
        dots = ax.scatter(
            points[:, x],
            points[:, y],
            4,
            difference,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
        )
        ax.set(
            title=title,
            xlabel=problem.coordinates[x],
            ylabel=problem.coordinates[y],
            aspect=_aspect(problem),
        )
        figure.colorbar(dots, ax=ax)
    return figure


def _median_seed(errors: np.ndarray, rate: int) -> int:
    return int(np.argsort(errors[rate])[errors.shape[1] // 2])


def _title(run: Run, config: Config, errors: np.ndarray, rate: int) -> str:
    """The problem, the method, and the error of the median seed."""
    seed = _median_seed(errors, rate)
    what = "relative L2 error" if run.metrics.get(SCORE) else "loss"
    return (
        f"{config.find_problem().equation}\n{in_words(config)}\n"
        f"learning rate {config.lr[rate]:g}, seed {seed}: {what} "
        f"{errors[rate, seed]:.2e}"
    )


def _places(problem: Problem) -> tuple[int, int]:
    """The coordinates from left to right and from bottom to top: time is the first."""
    return (1, 0) if problem.coordinates[1] == "t" else (0, 1)


def _aspect(problem: Problem) -> Literal["auto", "equal"]:
    """Equal for two coordinates of space; time has another unit."""
    shown = [problem.coordinates[place] for place in _places(problem)]
    return "auto" if "t" in shown else "equal"


def _shown(
    problem: Problem, found: Mapping[str, np.ndarray]
) -> dict[str, list[tuple[str, np.ndarray, float]]]:
    """For each field its panels: a title, values on the grid, the limit of colours."""
    known = problem.solution(problem.grid()) if callable(problem.exact) else {}
    panels = {}
    for name, u in found.items():
        exact = known.get(name)
        limit = _largest(u if exact is None else exact)
        shown = [("network", u, limit)]
        if exact is not None:
            difference = u - exact
            shown.append(("solution", np.where(np.isnan(u), np.nan, exact), limit))
            shown.append(("network - solution", difference, _largest(difference)))
        panels[name] = [(t, x.reshape(problem.resolution), m) for t, x, m in shown]
    return panels


def _slices(problem: Problem) -> list[tuple[Any, str]]:
    """The parts of a grid that are drawn: all of it, or planes of three dimensions."""
    if problem.dimension < 3:
        return [(..., "")]
    last, number = problem.coordinates[-1], problem.resolution[-1]
    axis = np.linspace(problem.domain.lower[-1], problem.domain.upper[-1], number)
    # The beginning and the end of time, and planes inside a body.
    shares = (0, 0.5, 1) if last == "t" else (0.25, 0.5, 0.75)
    places = [round(share * (number - 1)) for share in shares]
    return [((..., i), f"{last} = {axis[i]:.3g}") for i in places]


def _largest(u: np.ndarray) -> float:
    # A stopped column may have any value, infinity included.
    return float(np.max(np.abs(u), where=np.isfinite(u), initial=1e-12))


def _heading(config: Config) -> str:
    """The problem's name, then network and method, for a title of two lines."""
    return f"{config.find_problem().name}\n{in_words(config)}"


def in_words(config: Config) -> str:
    """Network and method, for a title."""
    order = [config.scale_control, config.optimizer]
    if config.order == "after":
        order.reverse()
    method = " + ".join(part for part in order if part != "none")
    terms = f"{config.terms} terms"
    if config.terms == "weighted":
        terms = f"weight {config.condition_weight:g}"
    return f"{config.depth} layers of {config.width}, {method}, {terms}"


def _curves(run: Run, config: Config, history: History):
    """Error and loss of every seed and rate over time."""
    labels = {SCORE: "relative L2 error", "loss": "loss"}
    keys = [key for key in labels if key in history[0]]
    figure, axes = plt.subplots(
        1,
        len(keys),
        squeeze=False,
        figsize=(5.5 * len(keys), 4.2),
        layout="constrained",
    )
    figure.suptitle(_heading(config))
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(config.lr)))
    legend = "median; thin: seeds"
    if config.lbfgs_steps:
        legend += "; dotted: L-BFGS begins"
    for ax, key in zip(axes.flat, keys, strict=True):
        for rate, (lr, color) in enumerate(zip(config.lr, colors, strict=True)):
            curves(ax, history, key, rate, color, f"lr {lr:g}")
        ax.set(ylabel=labels[key])
        if key == SCORE:
            ax.set(ylim=(None, min(ax.get_ylim()[1], HIGHEST)))
        if config.lbfgs_steps:
            ax.axvline(config.steps, color="black", linewidth=0.8, linestyle=":")
    axes[0, -1].legend(title=legend)
    return figure


def _unknowns(config: Config, history: History, rate: int):
    """The estimates of every seed over time, and what they should come to."""
    exact = config.find_problem().exact_unknowns
    names = list(history[0]["unknowns"])
    figure, axes = plt.subplots(
        1,
        len(names),
        squeeze=False,
        figsize=(5.5 * len(names), 4),
        layout="constrained",
    )
    figure.suptitle(f"{_heading(config)}, learning rate {config.lr[rate]:g}")
    steps = [entry["step"] for entry in history]
    for ax, name in zip(axes.flat, names, strict=True):
        values = np.array([entry["unknowns"][name][rate] for entry in history], float)
        ax.plot(steps, values, color="tab:blue", linewidth=0.9)
        ax.set(title=f"{name}: each seed", xlabel="step")
        if name in exact:
            ax.axhline(exact[name], color="black", linestyle=":", label="exact")
            ax.legend()
    return figure


def _scales(run: Run, config: Config, history: History, rate: int):
    """Layer scales of the first seed."""
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    scales(ax, history, rate, seed=0)
    title = f"Gradient scales of {_heading(config)}, lr {config.lr[rate]:g}, seed 0"
    ax.set_title(title)
    return figure


def _terms(run: Run, config: Config, history: History, rate: int):
    """Scales of the loss terms and cosines between them, of the first seed."""

    def column(values: Any) -> float:
        return float(np.array(values, float)[rate, 0])

    names = sorted(history[0]["term_scales"])
    steps = [entry["step"] for entry in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(f"Loss terms of {_heading(config)}, lr {config.lr[rate]:g}, seed 0")
    sg.plotting.plot_term_scales(
        [
            {name: column(entry["term_scales"][name]) for name in names}
            for entry in history
        ],
        steps=steps,
        ax=left,
    )
    pairs = list(itertools.combinations(names, 2))
    for one, other in pairs:
        cosines = [column(entry["term_alignment"][one][other]) for entry in history]
        right.plot(steps, cosines, label=f"{one} and {other}")
    right.axhline(0, color="black", linewidth=0.8)
    # Room for the legend, two pairs in a row.
    lowest = -1.1 - 0.1 * len(pairs)
    right.set(xlabel="step", ylabel="cosine; below 0: in conflict", ylim=(lowest, 1.05))
    right.legend(loc="lower center", ncols=2)
    return figure
