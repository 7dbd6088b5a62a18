"""Image classifiers with BatchNorm, or with nothing in its place.

python -m examples.image_classification train --model resnet50 --out runs/resnet50
python -m examples.image_classification --help
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from examples.common import command_line
from examples.common.runs import Run
from examples.image_classification import figures, studies
from examples.image_classification import run as training
from examples.image_classification.config import Config, Initialization
from examples.image_classification.studies import JUDGE


def train(config: Annotated[Config, tyro.conf.arg(name="")]) -> None:
    """Train an image classifier, with BatchNorm or with nothing in its place."""
    console = Console(soft_wrap=True)  # paths stay whole
    training.train(config, console)
    if not console.quiet:
        JUDGE.show(JUDGE.read([config.out]))
        print(f"Run: {config.out}")


def plot(run: Path) -> None:
    """Figures of a run, into its folder.

    Args:
      run: Folder of the run.
    """
    finished = Run(run)
    command_line.checked_settings(Config, finished.path, finished.settings)
    for path in figures.draw(finished):
        print(f"Figure: {path}")


def study(
    name: tyro.conf.Positional[studies.StudyName],
    out: Path,
    only: str = "",
    at_best_rate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    lr: tuple[float, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
    epochs: int | None = None,
    warmup_epochs: float | None = None,
    batch_size: int | None = None,
    width_multiplier: float | None = None,
    initialization: Initialization | None = None,
    stochastic_depth: float | None = None,
    data_dir: Path | None = None,
) -> None:
    """Train the runs of a named set that are not finished yet.

    Options that are not given have the values of the set.

    Args:
      name: Name of the set; they are defined in studies.py.
      out: Folder for the folders of the runs.
      only: Only runs whose name matches this regular expression: adam-none.
      at_best_rate: For each method only the rate that is best among the finished runs.
    """
    changes = {
        "epochs": epochs,
        "warmup_epochs": warmup_epochs,
        "batch_size": batch_size,
        "width_multiplier": width_multiplier,
        "initialization": initialization,
        "stochastic_depth": stochastic_depth,
        "data_dir": data_dir,
    }
    runs = studies.runs(name, out, lr, seeds, changes)
    runs = command_line.checked(runs, only)
    if at_best_rate:
        runs = studies.at_best_rates(runs, out)
    JUDGE.study(name, runs, training.train)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "plot": plot,
    "study": study,
    "collect": JUDGE.collect,
    "compare": JUDGE.compare,
}


def main(arguments: list[str] | None = None) -> int:
    return command_line.run(
        COMMANDS,
        arguments,
        program="python -m examples.image_classification",
        description=__doc__,
    )


if __name__ == "__main__":
    sys.exit(main())
