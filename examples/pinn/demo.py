"""The demo: two problems by fixed weights of the conditions and by balanced terms."""

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
from examples.pinn.figures import curves, on_grid, picture
from examples.pinn.studies import JUDGE, SCORE, final_scores
from examples.pinn.train import train

BALANCED = "balanced, no weight"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "weight 1": ("tab:gray", {"terms": "weighted", "condition_weight": 1.0}),
    "weight 100": ("tab:orange", {"terms": "weighted", "condition_weight": 100.0}),
    "weight 10,000": ("tab:green", {"terms": "weighted", "condition_weight": 1e4}),
    BALANCED: ("tab:red", {"terms": "balanced"}),
}
"""Colour and options of each."""
COMPARED = ("weight 1", BALANCED)
"""Where everybody starts, and what needs no weight."""

CASES: dict[str, dict[str, Any]] = {
    "poisson": {"depth": 16, "width": 32, "lr": (3e-3,), "interior_points": 256},
    "burgers": {"depth": 5, "width": 40, "lr": (1e-2,), "interior_points": 512},
}
"""What was used for the figure of docs/loss_terms.md, in fewer steps."""


def demo(out: Path = Path("demo"), steps: int = 1000, seeds: int = 3) -> None:
    """Train two PINNs by three weights of the conditions and without, and draw them.

    Args:
      out: Folder for the runs, the figure and the numbers.
      steps: Steps of each method.
      seeds: Initial weights and sequences of points; the same for every method.
    """
    common: dict[str, Any] = {"steps": steps, "seeds": seeds, "resume": True}
    common["gauss_newton_steps"] = 0
    runs = {
        f"{problem}, {method}": case | options | {"problem": problem}
        for problem, case in CASES.items()
        for method, (_, options) in METHODS.items()
    }
    configs = {name: Config(out / name, **common | x) for name, x in runs.items()}
    command_line.checked(configs, only="")
    console = Console(soft_wrap=True)
    # In threads: a program of small steps leaves cores idle.
    with ThreadPoolExecutor(len(configs)) as pool, progress.Bars(console) as bars:
        for run in [pool.submit(train, c, console, bars) for c in configs.values()]:
            run.result()
    found = JUDGE.read(config.out for config in configs.values())
    JUDGE.show(found)
    figure, numbers = out / "demo.png", out / "demo.json"
    draw(figure, configs)
    comparison.save(found, numbers)
    print(f"Figure: {figure}    Numbers: {numbers}")


def draw(path: Path, configs: Mapping[str, Config]) -> None:
    """A row for each problem: errors over time, and where the field is wrong."""
    size = (13, 3.75 * len(CASES))
    figure, rows = plt.subplots(
        len(CASES), 3, squeeze=False, figsize=size, layout="constrained"
    )
    steps = next(iter(configs.values())).steps
    title = "Fixed weights of the conditions, and balanced loss terms"
    figure.suptitle(f"{title}: {steps} steps of Muon")
    for (left, *others), name in zip(rows, CASES, strict=True):
        for method, (color, _) in METHODS.items():
            history = list(Run(configs[f"{name}, {method}"].out).history())
            curves(left, history, SCORE, 0, color, method)
        title = f"{name.capitalize()}: each seed, and the median"
        left.set(ylabel="relative L2 error", title=title)
        # The median seed of each method, in one range of colours.
        panels = {}
        for method in COMPARED:
            config = configs[f"{name}, {method}"]
            problem, run = config.find_problem(), Run(config.out)
            (errors,) = final_scores(run.metrics)
            seed = int(np.argsort(errors)[config.seeds // 2])
            u, grid = on_grid(run, config, 0, seed)["u"], problem.grid()
            difference = u - problem.solution(grid)["u"].reshape(u.shape)
            panels[f"{method}, seed {seed}: error {errors[seed]:.2g}"] = difference
        points = grid.reshape(*problem.resolution, -1)
        limit = float(np.nanmax(np.abs([*panels.values()])))
        for ax, (title, difference) in zip(others, panels.items(), strict=True):
            shown = picture(ax, problem, points, difference, title, limit)
        figure.colorbar(shown, ax=others, label="network - solution")
    rows[0, 0].legend(loc="lower left")
    pictures.save(figure, path)
