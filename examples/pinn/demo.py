"""The demo: a 64-layer PINN by three methods side by side, and one figure of them."""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from examples.common import pictures, progress, records, selection
from examples.common.optimizers import ScaleControl
from examples.common.runs import Run
from examples.pinn.config import Config
from examples.pinn.figures import History, curves, image, on_grid, scales, scales_at
from examples.pinn.problems import PROBLEMS
from examples.pinn.run import train
from examples.pinn.scores import JUDGE, final_errors

PLAIN, CLIPPED, STABLE = "adam", "clip + adam", "StableGrad + adam"
CONTROLS: dict[str, ScaleControl] = {
    PLAIN: "none",
    CLIPPED: "clip",
    STABLE: "stablegrad",
}
COLORS = {PLAIN: "tab:red", CLIPPED: "tab:gray", STABLE: "tab:blue"}


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train a deep PINN by adam, clip + adam and StableGrad + adam, and draw them."""

    out: Path = Path("demo")
    """Folder for the runs, the figure and the numbers."""
    depth: int = 64
    """Hidden layers."""
    steps: int = 2000
    """Steps of each method."""
    seeds: int = 3
    """Initial weights and sequences of points; the same for every method."""

    def runs(self) -> dict[str, Config]:
        """The run of each method; all of them checked."""
        runs = {
            method: Config(
                self.out / method,
                depth=self.depth,
                scale_control=control,
                steps=self.steps,
                seeds=self.seeds,
                interior_points=128,
                condition_points=32,
                terms="weighted",
                resume=True,
            )
            for method, control in CONTROLS.items()
        }
        return selection.checked(runs, only="")


def run(options: Demo, console: Console) -> None:
    """Trains what is not trained yet, and writes a table, a figure and the numbers."""
    runs = options.runs()
    train_side_by_side(runs, console)
    found = JUDGE.read(config.out for config in runs.values())
    JUDGE.show(found, console)
    figure = options.out / "deep_poisson.png"
    numbers = options.out / "deep_poisson.json"
    draw(figure, runs)
    records.collect(found, numbers)
    console.print(f"Figure: {figure}    Numbers: {numbers}")


def train_side_by_side(runs: Mapping[str, Config], console: Console) -> None:
    """Trains runs in threads: a program of small steps leaves cores idle."""
    with ThreadPoolExecutor() as pool, progress.Bars(console) as bars:
        for done in [pool.submit(train, run, console, bars) for run in runs.values()]:
            done.result()


def draw(path: Path, configs: Mapping[str, Config]) -> None:
    """Errors and layer scales over time above, fields below."""
    config, problem = configs[PLAIN], PROBLEMS[configs[PLAIN].problem]
    runs = {method: Run(config.out) for method, config in configs.items()}
    histories = {method: list(run.history()) for method, run in runs.items()}
    errors = {method: final_errors(run.metrics)[0] for method, run in runs.items()}
    # The seed on which adam alone does worst shows what there is to improve.
    seed = int(np.argmax(errors[PLAIN]))
    compared = (PLAIN, STABLE)

    figure, (upper, lower) = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    figure.suptitle(
        f"A PINN of {config.depth} tanh layers without residual connections, "
        f"{config.steps} steps, learning rate {config.lr[0]:g}"
    )
    for method, history in histories.items():
        curves(upper[0], history, "relative_l2", 0, COLORS[method], method)
    upper[0].set(ylabel="relative L2 error", title="Error: each seed, and the median")
    upper[0].legend(loc="lower left")

    limits = _limits([histories[method] for method in compared], seed)
    for ax, method in zip(upper[1:], compared, strict=True):
        last = method == STABLE
        scales(ax, histories[method], 0, seed, limits=limits, colorbar=last)
        ax.set_yticks([0, config.depth], ["input layer", "output layer"])
        ax.set_title(f"Gradient scales from backprop\nby {method}, seed {seed}")

    for ax, method in zip(lower[:2], compared, strict=True):
        u = on_grid(runs[method], configs[method], 0, seed)
        title = f"{method}, seed {seed}: error {errors[method][seed]:.3f}"
        image(ax, problem, u, 1.0, title)
    exact = problem.exact(problem.grid())
    shown = image(lower[2], problem, exact, 1.0, "exact solution")
    figure.colorbar(shown, ax=lower, label="u(x, y)", shrink=0.9)
    for ax in lower:
        ax.set_aspect("equal")
    pictures.save(figure, path)


def _limits(histories: list[History], seed: int) -> tuple[float, float]:
    """One range of colours for all histories, without the most extreme scales."""
    entries = [scales_at(entry, 0, seed) for history in histories for entry in history]
    seen = np.concatenate([np.ravel(x) for entry in entries for x in entry.values()])
    low, high = np.quantile(seen[np.isfinite(seen) & (seen > 0)], [0.01, 0.99])
    return float(low), float(high)
