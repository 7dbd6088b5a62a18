"""Tables and figures of finished runs."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colors
from rich import box
from rich.table import Table

import stablegrad_optax as sg
from examples.common.runs import Run, RunError
from examples.pinn.config import Config

TRAINED = 0.1
"""A seed counts as trained below this relative L2 error; u = 0 has error 1."""


def as_array(nested: Any) -> np.ndarray:
    """Numbers from JSON, where what was not finite is null."""
    return np.asarray(nested, float)


def final_errors(metrics: dict[str, Any]) -> np.ndarray:
    """Relative L2 errors, shape (rates, seeds); infinite where training stopped."""
    errors = as_array(metrics["relative_l2"])
    stopped = np.asarray(metrics["stopped_at_step"]) >= 0
    return np.where(stopped | ~np.isfinite(errors), np.inf, errors)


def best_rate(errors: np.ndarray) -> int:
    """The index of the learning rate with the lowest median error."""
    return int(np.argmin(np.median(np.nan_to_num(errors, nan=np.inf), axis=1)))


def table(runs: Sequence[Run]) -> Table:
    """A line for each run, at its own best learning rate."""
    rendered = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    rendered.caption = (
        "relative L2 error at the best learning rate, median and quartiles over seeds"
    )
    rendered.add_column("run", overflow="fold")
    for column in ("lr", "median", "quartiles", f"< {TRAINED}", "steps/s"):
        rendered.add_column(column, justify="right", no_wrap=True)
    for run in runs:
        metrics = run.metrics
        errors = final_errors(metrics)
        index = best_rate(errors)
        low, median, high = np.quantile(
            errors[index], [0.25, 0.5, 0.75], method="nearest"
        )
        rendered.add_row(
            run.name,
            f"{metrics['settings']['lr'][index]:g}",
            f"{median:.2e}",
            f"{low:.1e} - {high:.1e}",
            f"{np.sum(errors[index] < TRAINED)}/{errors.shape[1]}",
            f"{metrics['steps_per_second'] or float('nan'):.1f}",
        )
    return rendered


def params_of(run: Run, config: Config, rate: int | None, seed: int) -> Any:
    """The parameters of one column of a finished run."""
    from examples.pinn.train import Program

    errors = final_errors(run.metrics)
    rate = best_rate(errors) if rate is None else rate
    for name, value, number in (
        ("--lr-index", rate, errors.shape[0]),
        ("--seed", seed, errors.shape[1]),
    ):
        if not 0 <= value < number:
            raise RunError(f"{name} must be from 0 to {number - 1}, got {value}.")
    program = Program(config)
    found = run.restore(program.template)
    if found is None:
        raise RunError(f"{run.path} has no checkpoint.")
    program.restore(*found)
    return program.params(rate, seed)


def draw(run: Run, config: Config) -> list[Path]:
    """The figures of a run, into its folder."""
    drawn = []
    for name, figure in (
        ("field.png", _field(run, config)),
        ("curves.png", _curves(run)),
        ("layer_scales.png", _scales(run)),
    ):
        path = run.path / name
        figure.savefig(path, dpi=120)
        plt.close(figure)
        drawn.append(path)
    return drawn


def _field(run: Run, config: Config):
    """Prediction, solution and error of the best rate's median seed."""
    from examples.pinn.problems import PROBLEMS
    from examples.pinn.train import field

    problem = PROBLEMS[config.problem]
    errors = final_errors(run.metrics)
    rate = best_rate(errors)
    seed = int(np.argsort(errors[rate])[errors.shape[1] // 2])
    grid = problem.grid()
    params = params_of(run, config, rate, seed)
    predicted = field(config, params, grid.reshape(-1, problem.dimension))
    predicted = predicted.reshape(problem.resolution)
    exact = problem.exact(grid)
    title = (
        f"{problem.equation}   {config.depth} layers, {config.scale_control} + "
        f"{config.optimizer}, lr {config.lr[rate]:g}, seed {seed}: relative L2 error "
        f"{errors[rate, seed]:.2e}"
    )
    if problem.dimension == 1:
        return _field_1d(title, grid[:, 0], predicted, exact, problem)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    figure.suptitle(title)
    bound = float(np.abs(exact).max())
    wrong = predicted - exact
    worst = max(float(np.abs(wrong).max()), np.finfo(float).tiny)
    for ax, values, name, limit in (
        (axes[0], predicted, "network", bound),
        (axes[1], exact, "solution", bound),
        (axes[2], wrong, "network - solution", worst),
    ):
        image = ax.imshow(
            values.T,
            origin="lower",
            aspect="auto",
            cmap="RdBu_r",
            norm=colors.Normalize(-limit, limit),
            extent=(
                problem.lower[0],
                problem.upper[0],
                problem.lower[1],
                problem.upper[1],
            ),
        )
        ax.set(title=name, xlabel=problem.coordinates[0], ylabel=problem.coordinates[1])
        figure.colorbar(image, ax=ax)
    return figure


def _field_1d(title, x, predicted, exact, problem):
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, layout="constrained"
    )
    figure.suptitle(title, fontsize="medium")
    above.plot(x, exact, color="black", linewidth=3, alpha=0.3, label="solution")
    above.plot(x, predicted, color="tab:blue", label="network")
    above.legend()
    above.set_ylabel("u")
    below.plot(x, predicted - exact, color="tab:red")
    below.set(xlabel=problem.coordinates[0], ylabel="network - solution")
    return figure


def _curves(run: Run):
    """Error and loss of every seed and rate over time."""
    history = list(run.history())
    steps = [entry["step"] for entry in history]
    rates = run.settings["lr"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(run.name)
    palette = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(rates)))
    for ax, key, label in (
        (axes[0], "relative_l2", "relative L2 error"),
        (axes[1], "loss", "loss"),
    ):
        values = np.stack([as_array(entry[key]) for entry in history])
        for i, (rate, color) in enumerate(zip(rates, palette, strict=True)):
            ax.plot(steps, values[:, i], color=color, linewidth=0.7, alpha=0.5)
            median = np.median(values[:, i], axis=1)
            ax.plot(steps, median, color=color, linewidth=2, label=f"lr {rate:g}")
        ax.set(yscale="log", xlabel="step", ylabel=label)
        ax.grid(which="both", alpha=0.2)
    axes[0].legend(title="median; thin: seeds")
    return figure


def _scales(run: Run):
    """Layer scales over depth and time, at the best rate's first seed."""
    history = list(run.history())
    rate = best_rate(final_errors(run.metrics))
    scales = [
        {
            layer: as_array(values)[rate, 0]
            for layer, values in entry["layer_scales"].items()
        }
        for entry in history
    ]
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    sg.plotting.plot_layer_scales(
        scales,
        steps=[entry["step"] for entry in history],
        layers=("params/first", "params/hidden", "params/last"),
        ax=ax,
    )
    ax.set_title(
        f"{run.name}: gradient scales, lr {run.settings['lr'][rate]:g}, seed 0"
    )
    return figure


def draw_comparison(runs: Sequence[Run], path: Path) -> None:
    """Errors over learning rates: median, quartiles and seeds of each run."""
    figure, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    markers = itertools.cycle("osD^vP*X")
    for i, run in enumerate(runs):
        metrics = run.metrics
        rates = np.asarray(metrics["settings"]["lr"])
        errors = final_errors(metrics)
        # Side by side where runs share a rate.
        shift = 1.03 ** (i - (len(runs) - 1) / 2)
        low, median, high = np.quantile(
            errors, [0.25, 0.5, 0.75], axis=1, method="nearest"
        )
        shown = np.clip([low, median, high], None, 2.0)
        ax.errorbar(
            rates * shift,
            shown[1],
            yerr=[shown[1] - shown[0], shown[2] - shown[1]],
            marker=next(markers),
            capsize=3,
            label=run.name,
        )
    ax.axhline(1, color="black", linewidth=0.8, linestyle=":")
    ax.annotate(
        "u = 0, and what did not train",
        (0.01, 1.04),
        xycoords=("axes fraction", "data"),
        fontsize="small",
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="learning rate",
        ylabel="relative L2 error: median and quartiles",
    )
    ax.grid(which="both", alpha=0.2)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
