"""Figures of a finished run: its field, curves and layer scales."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colors

import stablegrad_optax as sg
from examples.common.runs import Run
from examples.pinn.config import Config
from examples.pinn.problems import PROBLEMS
from examples.pinn.restore import params_of
from examples.pinn.scores import ERROR, final_errors
from examples.pinn.train import field

LAYERS = ("params/first", "params/hidden", "params/last")
"""In their order; a network of one hidden layer has no middle."""

HIGHEST = 10.0
"""Errors above are outside of the curves' figure: what did not train may have any."""


def draw(run: Run, config: Config) -> list[Path]:
    """The figures of a run, into its folder."""
    drawn = []
    for name, figure in (
        ("field.png", _field(run, config)),
        ("curves.png", _curves(run, config)),
        ("layer_scales.png", _scales(run)),
    ):
        path = run.path / name
        figure.savefig(path, dpi=120)
        plt.close(figure)
        drawn.append(path)
    return drawn


def _field(run: Run, config: Config):
    """Prediction, solution and error of the best rate's median seed."""
    problem = PROBLEMS[config.problem]
    errors = final_errors(run.metrics)
    rate = ERROR.best_rate(errors)
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
    # A column that stopped may be anywhere, at infinity too.
    worst = float(np.max(np.abs(wrong), where=np.isfinite(wrong), initial=1e-12))
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


def _curves(run: Run, config: Config):
    """Error and loss of every seed and rate over time."""
    history = list(run.history())
    steps = [entry["step"] for entry in history]
    rates = config.lr
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(run.name)
    palette = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(rates)))
    for ax, key, label in (
        (axes[0], "relative_l2", "relative L2 error"),
        (axes[1], "loss", "loss"),
    ):
        values = np.stack([np.asarray(entry[key], float) for entry in history])
        for i, (rate, color) in enumerate(zip(rates, palette, strict=True)):
            ax.plot(steps, values[:, i], color=color, linewidth=0.7, alpha=0.5)
            median = np.median(values[:, i], axis=1)
            ax.plot(steps, median, color=color, linewidth=2, label=f"lr {rate:g}")
        ax.set(yscale="log", xlabel="step", ylabel=label)
        ax.grid(which="both", alpha=0.2)
        if 0 < config.steps < steps[-1]:
            ax.axvline(config.steps, color="black", linewidth=0.8, linestyle=":")
    axes[0].set_ylim(top=min(axes[0].get_ylim()[1], HIGHEST))
    note = "; dotted: L-BFGS from here" if config.lbfgs_steps else ""
    axes[0].legend(title=f"median; thin: seeds{note}")
    return figure


def _scales(run: Run):
    """Layer scales over depth and time, at the best rate's first seed."""
    history = list(run.history())
    rate = ERROR.best_rate(final_errors(run.metrics))
    scales = [
        {
            layer: np.asarray(values, float)[rate, 0]
            for layer, values in entry["layer_scales"].items()
        }
        for entry in history
    ]
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    sg.plotting.plot_layer_scales(
        scales,
        steps=[entry["step"] for entry in history],
        layers=[name for name in LAYERS if name in scales[0]],
        ax=ax,
    )
    ax.set_title(
        f"{run.name}: gradient scales, lr {run.settings['lr'][rate]:g}, seed 0"
    )
    return figure
