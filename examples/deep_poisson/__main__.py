"""Trains a deep PINN by adam, clipping + adam and StableGrad + adam, and compares.

python -m examples.deep_poisson [--depth 64] [--steps 2000] [--out demo] ...
"""

import dataclasses
from pathlib import Path

import matplotlib
import tyro
from rich.console import Console

from examples.deep_poisson import report
from examples.deep_poisson.train import Config, methods, train


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """Options of the demo."""

    out: Path = Path("demo")
    """Folder for the figure and the numbers."""


def main() -> None:
    try:
        options = tyro.cli(Options, description=__doc__)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    matplotlib.use("agg")
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    with report.progress_bar() as bar:
        for name, optimizer in methods(options).items():
            task = bar.add_task(name, total=options.steps, errors="compiling")

            def show(progress, task=task):
                errors = report.format_errors(progress.errors)
                bar.update(task, completed=progress.step, errors=f"error {errors}")

            results[name] = train(optimizer, options, show)
    console.print(report.table(options, results))
    figure, numbers = options.out / "deep_poisson.png", options.out / "deep_poisson.json"
    report.draw(figure, options, results)
    report.write_json(numbers, options, results)
    console.print(f"Figure: {figure}    Numbers: {numbers}")


if __name__ == "__main__":
    main()
