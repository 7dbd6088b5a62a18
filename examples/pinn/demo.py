"""The demo: two problems by fixed weights of the conditions and by balanced terms."""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from examples.common import command_line, comparison, pictures, progress
from examples.common.runs import Run
from examples.pinn.config import Config
from examples.pinn.figures import curves, image, on_grid
from examples.pinn.problems import PROBLEMS
from examples.pinn.run import train
from examples.pinn.scores import JUDGE, final_errors

BALANCED = "balanced, no weight"
WEIGHTS = {f"weight {weight:,.0f}": weight for weight in (1.0, 100.0, 1e4)}
METHODS: dict[str, dict[str, Any]] = {
    **{
        method: {"terms": "weighted", "condition_weight": weight}
        for method, weight in WEIGHTS.items()
    },
    BALANCED: {"terms": "balanced"},
}
COMPARED = ("weight 1", BALANCED)
"""Where everybody starts, and what needs no weight."""
COLORS = dict(
    zip(METHODS, ("tab:gray", "tab:orange", "tab:green", "tab:red"), strict=True)
)

CASES: dict[str, dict[str, Any]] = {
    "poisson": {
        "depth": 16,
        "width": 32,
        "lr": (3e-3,),
        "interior_points": 256,
        "condition_points": 64,
    },
    "burgers": {
        "depth": 5,
        "width": 40,
        "lr": (1e-2,),
        "interior_points": 512,
        "condition_points": 64,
    },
}
"""What was used for the figure of docs/loss_terms.md, in fewer steps."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train two PINNs by three weights of the conditions and without, and draw them."""

    out: Path = Path("demo")
    """Folder for the runs, the figure and the numbers."""
    steps: int = 1000
    """Steps of each method."""
    seeds: int = 3
    """Initial weights and sequences of points; the same for every method."""

    def runs(self) -> dict[str, Config]:
        """The run of each problem and method; all of them checked."""
        runs = {
            f"{problem}, {method}": Config(
                self.out / f"{problem}, {method}",
                problem=problem,
                optimizer="muon",
                scale_control="none",
                steps=self.steps,
                seeds=self.seeds,
                resume=True,
                **case,
                **options,
            )
            for problem, case in CASES.items()
            for method, options in METHODS.items()
        }
        return command_line.checked(runs, only="")


def run(options: Demo, console: Console) -> None:
    """Trains what is not trained yet, and writes a table, a figure and the numbers."""
    runs = options.runs()
    train_side_by_side(runs, console)
    found = JUDGE.read(config.out for config in runs.values())
    JUDGE.show(found, console)
    figure = options.out / "demo.png"
    numbers = options.out / "demo.json"
    draw(figure, runs)
    comparison.save(found, numbers)
    console.print(f"Figure: {figure}    Numbers: {numbers}")


def train_side_by_side(runs: Mapping[str, Config], console: Console) -> None:
    """Trains runs in threads: a program of small steps leaves cores idle."""
    with ThreadPoolExecutor(len(runs)) as pool, progress.Bars(console) as bars:
        for done in [pool.submit(train, run, console, bars) for run in runs.values()]:
            done.result()


def draw(path: Path, configs: Mapping[str, Config]) -> None:
    """A row for each problem: errors over time, and where the field is wrong."""
    figure, rows = plt.subplots(
        len(CASES),
        3,
        squeeze=False,
        figsize=(13, 3.75 * len(CASES)),
        layout="constrained",
    )
    steps = next(iter(configs.values())).steps
    figure.suptitle(
        "Fixed weights of the conditions, and balanced loss terms: "
        f"{steps} steps of Muon"
    )
    for axes, problem in zip(rows, CASES, strict=True):
        row = {method: configs[f"{problem}, {method}"] for method in METHODS}
        _errors(axes[0], row, problem.capitalize())
        _differences(figure, axes[1:], {m: row[m] for m in COMPARED}, problem)
    rows[0, 0].legend(loc="lower left")
    pictures.save(figure, path)


def _errors(ax, configs: Mapping[str, Config], title: str) -> None:
    """The error of each seed, and their median, over time."""
    for method, config in configs.items():
        history = list(Run(config.out).history())
        curves(ax, history, "relative_l2", 0, COLORS[method], method)
    ax.set(ylabel="relative L2 error", title=f"{title}: each seed, and the median")


def _differences(
    figure, axes, configs: Mapping[str, Config], problem_name: str
) -> None:
    """The median seed of each method beside the solution, in one range of colours."""
    problem = PROBLEMS[problem_name]
    exact = problem.solution(problem.grid())["u"]
    differences, titles = [], []
    for method, config in configs.items():
        run = Run(config.out)
        (errors,) = final_errors(run.metrics)
        seed = int(np.argsort(errors)[config.seeds // 2])
        difference = on_grid(run, config, 0, seed)["u"] - exact
        differences.append(difference.reshape(problem.resolution))
        titles.append(f"{method}, seed {seed}: error {errors[seed]:.2g}")
    limit = float(np.nanmax(np.abs(differences)))
    for ax, difference, title in zip(axes, differences, titles, strict=True):
        shown = image(ax, problem, difference, limit, title)
    figure.colorbar(shown, ax=axes, label="network - solution")
