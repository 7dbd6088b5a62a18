"""Trains a deep PINN by adam, clipping + adam and StableGrad + adam, and compares.

python -m examples.deep_poisson [--depth 64] [--steps 2000] [--out demo] ...
"""

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import matplotlib
import tyro
from rich.console import Console
from rich.progress import Progress

from examples.deep_poisson import report
from examples.deep_poisson.train import Config, methods, train


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains a deep PINN by adam, clipping + adam and StableGrad + adam."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    out: Path = Path("demo")
    """Folder for the figure and the numbers."""


def main(config: Config, out: Path) -> None:
    matplotlib.use("agg")
    console = Console()
    with report.progress_bar() as bar, ThreadPoolExecutor() as pool:
        # Side by side: a program of small steps does not fill two cores, and all
        # methods find the same conditions.
        runs = {
            name: pool.submit(train, optimizer, config, _show_on(bar, name, config))
            for name, optimizer in methods(config).items()
        }
        results = {name: run.result() for name, run in runs.items()}
    console.print(report.table(config, results))
    figure, numbers = out / "deep_poisson.png", out / "deep_poisson.json"
    report.draw(figure, config, results)
    report.write_json(numbers, config, results)
    console.print(f"Figure: {figure}    Numbers: {numbers}")


def _show_on(bar: Progress, name: str, config: Config):
    task = bar.add_task(name, total=config.steps, errors="compiling")

    def show(progress):
        errors = report.format_errors(progress.errors)
        bar.update(task, completed=progress.step, errors=f"error {errors}")

    return show


if __name__ == "__main__":
    try:
        options = tyro.cli(Options)
        options.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    main(options.config, options.out)
