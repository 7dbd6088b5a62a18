"""Image classifiers with BatchNorm, or with nothing in its place.

python -m examples.image_classification train --model resnet50 --out runs/resnet50
python -m examples.image_classification --help
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import matplotlib
import tyro
from rich.console import Console

from examples.common import command_line
from examples.common.comparison import Collect, Compare, Plot
from examples.common.runs import Run
from examples.image_classification import figures, run, studies
from examples.image_classification.config import Config, Initialization
from examples.image_classification.studies import JUDGE

CHANGES = (
    *("epochs", "warmup_epochs", "batch_size", "width_multiplier", "initialization"),
    *("stochastic_depth", "data_dir"),
)


@dataclasses.dataclass(frozen=True)
class Study:
    """Train the runs of a named set that are not finished yet.

    Options that are not given have the values of the set.
    """

    name: tyro.conf.Positional[studies.StudyName]
    """Name of the set; they are defined in studies.py."""
    out: Path
    """Folder for the folders of the runs."""
    only: str = ""
    """Only runs whose name matches this regular expression, for example adam-none."""
    at_best_rate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """For each method only the rate that is best among the finished runs."""
    lr: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None
    warmup_epochs: float | None = None
    batch_size: int | None = None
    width_multiplier: float | None = None
    initialization: Initialization | None = None
    stochastic_depth: float | None = None
    data_dir: Path | None = None


Command = (
    Annotated[Config, tyro.conf.subcommand("train")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
)


def study(options: Study, console: Console) -> None:
    changes = command_line.given(options, CHANGES)
    runs = studies.runs(options.name, options.out, options.lr, options.seeds, changes)
    runs = command_line.checked(runs, options.only)
    if options.at_best_rate:
        runs = studies.at_best_rates(runs, options.out)
    for i, (name, config) in enumerate(runs.items()):
        console.rule(f"{name} ({i + 1} of {len(runs)})")
        try:
            run.train(config, console)
        except run.DivergedError as error:
            console.print(f"Stopped: {error}")
    console.rule(options.name)
    JUDGE.show(JUDGE.read(config.out for config in runs.values()), console)


def do(command: Command) -> None:
    console = Console(soft_wrap=True)  # paths stay whole
    matplotlib.use("agg")
    match command:
        case Config() as config:
            run.train(config, console)
            JUDGE.show(JUDGE.read([config.out]), console)
            console.print(f"Run: {config.out}")
        case Plot() as options:
            finished = Run(options.run)
            command_line.checked_settings(Config, finished.path, finished.settings)
            for path in figures.draw(finished):
                console.print(f"Figure: {path}")
        case Study() as options:
            study(options, console)
        case Collect() as options:
            JUDGE.collect(options, console)
        case Compare() as options:
            JUDGE.compare(options, console)


def main(arguments: list[str] | None = None) -> int:
    return command_line.run(
        Command,
        do,
        arguments=arguments,
        program="python -m examples.image_classification",
        description=__doc__,
    )


if __name__ == "__main__":
    sys.exit(main())
