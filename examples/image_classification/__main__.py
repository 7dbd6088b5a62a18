"""Image classifiers with BatchNorm, or with nothing in its place.

python -m examples.image_classification train --model resnet50 --out runs/resnet50
python -m examples.image_classification --help
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import matplotlib
import numpy as np
import tyro
from rich.console import Console

from examples.common import command_line, progress, selection
from examples.common.commands import Collect, Compare, Plot
from examples.common.runs import Recording, Run
from examples.image_classification import studies
from examples.image_classification.config import Config, Initialization
from examples.image_classification.scores import JUDGE
from examples.image_classification.watch import DivergedError, Watch

CHANGES = (
    "epochs",
    "warmup_epochs",
    "batch_size",
    "width_multiplier",
    "initialization",
    "stochastic_depth",
    "data_dir",
)
"""Options of a study that hold for all of its runs."""


@dataclasses.dataclass(frozen=True)
class Study:
    """Train a named set of runs, those that are not finished yet."""

    name: tyro.conf.Positional[studies.StudyName]
    """Which set: examples/image_classification/studies.py says what is in it."""
    out: Path
    """Folder for the folders of the runs."""
    only: str = ""
    """Take runs only in whose name this regular expression is found: adam-none."""
    at_best_rate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Of each method only the rate that is best in the runs finished so far."""
    lr: tuple[float, ...] | None = None
    """Other rates than those of the set; so for the options below."""
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None
    warmup_epochs: float | None = None
    batch_size: int | None = None
    width_multiplier: float | None = None
    initialization: Initialization | None = None
    stochastic_depth: float | None = None
    data_dir: Path | None = None

    def runs(self) -> studies.Runs:
        """The runs to be made, by name, all of them checked."""
        changes = selection.given(self, CHANGES)
        runs = studies.runs(self.name, self.out, self.lr, self.seeds, changes)
        runs = selection.checked(runs, self.only)
        return studies.at_best_rates(runs, self.out) if self.at_best_rate else runs


Command = (
    Annotated[Config, tyro.conf.subcommand("train")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
)


def train(config: Config, console: Console) -> None:
    """Trains to the end; raises DivergedError where the loss does not stay finite."""
    from examples.image_classification.mesh import connect
    from examples.image_classification.train import Program

    config.check()
    connect(config)
    console.quiet = jax.process_index() > 0
    # Whether options go together is found out before a folder is made.
    program = Program(config)
    with Recording(config.out, config.settings(), resume=config.resume) as run:
        if run.finished:
            console.print(
                f"{config.out} is finished already: nothing to do.", soft_wrap=True
            )
            return
        program.start()
        found = run.resume(program.template)
        if found is not None:
            program.restore(*found)
            console.print(f"Resumed at step {program.step}.")
        try:
            _advance(program, run, console)
        except DivergedError as error:
            run.finish(functools.partial(_results, program, run, error))
            raise
        run.finish(functools.partial(_results, program, run))


def _advance(program, run: Recording, console: Console) -> None:
    """Trains to the end, and records what happens on the way."""
    from examples.image_classification.events import Events

    config = program.config
    before, watch = program.step, Watch(_hint(config))
    name = f"{config.model} on {config.data}"
    with (
        progress.Steps(console, name, program.total_steps, before) as bar,
        Events(run.path, before) as events,
    ):
        for step, reports in program.run():
            losses = [float(report.loss) for report in reports]
            scales = [report.layer_scales for report in reports]
            entry: dict[str, Any] = {
                "step": step,
                "loss": float(np.mean(losses)),
                "layer_scales": {k: float(f"{v:.4g}") for k, v in scales[-1].items()},
            }
            shown = {"loss": entry["loss"]}
            if program.at_end_of_epoch:
                shown |= _of_epoch(program)
                entry |= {"epoch": program.epoch, **shown}
            run.append(entry)
            watch.look(before, losses, scales)
            events.write(step, shown)
            speed = config.batch_size / program.step_seconds[-1]
            accuracy = shown.get("test_accuracy")
            tested = "" if accuracy is None else f", test accuracy {accuracy:.4f}"
            bar.show(step, f"loss {losses[-1]:.3g}, {speed:.0f} images/s{tested}")
            every = config.checkpoint_every
            if step // every > before // every or program.at_end_of_epoch:
                run.save(step, program.checkpoint())
            before = step


def _of_epoch(program) -> dict[str, float]:
    """Means over the training images as they were seen, and over the test images."""
    values = {}
    for name, totals in (("train", program.training_totals), ("test", program.test())):
        values[f"{name}_loss"] = float(totals.loss / totals.images)
        values[f"{name}_accuracy"] = float(totals.correct / totals.images)
    return values


def _results(program, run: Recording, stopped: DivergedError | None = None) -> dict:
    epochs = [entry for entry in run.history() if "epoch" in entry]
    names = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    seconds = program.step_seconds
    step_seconds = float(np.median(seconds)) if seconds else None
    return {
        "test_accuracy": None if stopped else epochs[-1]["test_accuracy"],
        "stopped_at_step": -1 if stopped is None else stopped.step,
        "first_layer_to_go": None if stopped is None else stopped.layer,
        "step_seconds": step_seconds,
        "images_per_second": (
            None if step_seconds is None else program.config.batch_size / step_seconds
        ),
        "compile_seconds": program.compile_seconds,
        "curves": {name: [entry[name] for entry in epochs] for name in names},
        "data": {
            "name": program.dataset.name,
            "training_images": len(program.dataset.train),
            "test_images": len(program.dataset.test),
            "image_shape": program.dataset.image_shape,
            "classes": len(program.dataset.class_names),
        },
        "mesh": dict(program.layout.mesh.shape),
        "processes": jax.process_count(),
    }


def _hint(config: Config) -> str:
    lower = f"Try a lower --lr than {config.lr:g}"
    if config.scale_control == "none":
        return f"{lower}, or --scale-control stablegrad-prediction."
    return f"{lower}, or --initialization depth-scaled."


def plot(options: Plot, console: Console) -> None:
    from examples.image_classification import figures

    matplotlib.use("agg")
    run = Run(options.run)
    _ = run.metrics
    Config.of(run.path, run.settings)
    for path in figures.draw(run):
        console.print(f"Figure: {path}", soft_wrap=True)


def study(options: Study, console: Console) -> None:
    runs = options.runs()
    for i, (name, config) in enumerate(runs.items()):
        console.rule(f"{name} ({i + 1} of {len(runs)})")
        try:
            train(config, console)
        except DivergedError as error:
            console.print(f"Stopped: {error}", soft_wrap=True)
    console.rule(options.name)
    JUDGE.show(JUDGE.read(config.out for config in runs.values()), console)


def do(command: Command) -> None:
    console = Console()
    match command:
        case Config() as config:
            train(config, console)
            JUDGE.show(JUDGE.read([config.out]), console)
            console.print(f"Run: {config.out}", soft_wrap=True)
        case Plot() as options:
            plot(options, console)
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
