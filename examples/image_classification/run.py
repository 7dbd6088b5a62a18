"""A training run: from its beginning or its last checkpoint to its results."""

import collections
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console
from tensorboardX import SummaryWriter

from examples.common import progress
from examples.common.runs import Recording
from examples.image_classification.config import Config
from examples.image_classification.mesh import connect
from examples.image_classification.train import Program
from examples.image_classification.watch import MEMORY, DivergedError


def train(config: Config, console: Console) -> None:
    """Trains to the end; raises DivergedError where the loss does not stay finite."""
    config.check()
    connect(config)
    console.quiet = jax.process_index() > 0
    # Options that do not go together are an error before a folder is made.
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
        stopped = None
        try:
            _advance(program, run, console)
        except DivergedError as error:
            stopped = error
        run.finish(lambda: _results(program, run, stopped))
        if stopped is not None:
            raise stopped


def _advance(program: Program, run: Recording, console: Console) -> None:
    """Trains to the end; writes history, events and checkpoints."""
    config, before = program.config, program.step
    recent: collections.deque[Mapping[str, float]] = collections.deque(maxlen=MEMORY)
    name = f"{config.model} on {config.data}"
    bar = progress.Steps(console, name, program.total_steps, before)
    # Events that a killed run wrote after its last checkpoint are hidden.
    events = SummaryWriter(
        str(run.path / "events"),
        purge_step=before,
        write_to_disk=jax.process_index() == 0,
    )
    with bar, events:
        for step, reports in program.run():
            scales = reports[-1].layer_scales
            shown = {"loss": float(np.mean([report.loss for report in reports]))}
            entry: dict[str, Any] = {
                "step": step,
                **shown,
                "layer_scales": {k: float(f"{v:.4g}") for k, v in scales.items()},
            }
            if program.at_end_of_epoch:
                shown |= program.results_of_epoch()
                entry |= {"epoch": step // program.steps_per_epoch, **shown}
            run.append(entry)
            for at, report in enumerate(reports, before):
                recent.append(report.layer_scales)
                if not np.isfinite(report.loss):
                    raise DivergedError(at, report.loss, recent, _hint(config))
            for tag, value in shown.items():
                events.add_scalar(tag, value, step)
            now = f"loss {reports[-1].loss:.3g}, "
            now += f"{config.batch_size / program.step_seconds[-1]:.0f} images/s"
            if "test_accuracy" in shown:
                now += f", test accuracy {shown['test_accuracy']:.4f}"
            bar.show(step, now)
            every = config.checkpoint_every
            if step // every > before // every or program.at_end_of_epoch:
                run.save(step, program.state)
            before = step


def _results(
    program: Program, run: Recording, stopped: DivergedError | None
) -> dict[str, Any]:
    config, dataset, seconds = program.config, program.dataset, program.step_seconds
    epochs = [entry for entry in run.history() if "epoch" in entry]
    names = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    step_seconds = float(np.median(seconds)) if seconds else None
    return {
        "test_accuracy": None if stopped else epochs[-1]["test_accuracy"],
        "stopped_at_step": stopped.step if stopped else -1,
        "first_layer_to_go": stopped.layer if stopped else None,
        "step_seconds": step_seconds,
        "images_per_second": config.batch_size / step_seconds if step_seconds else None,
        "compile_seconds": program.compile_seconds,
        "curves": {name: [entry[name] for entry in epochs] for name in names},
        "data": {
            "name": config.data,
            "training_images": len(dataset.train.labels),
            "test_images": len(dataset.test.labels),
            "image_shape": dataset.image_shape,
            "classes": dataset.classes,
        },
        "mesh": dict(program.layout.mesh.shape),
        "processes": jax.process_count(),
    }


def _hint(config: Config) -> str:
    lower = f"Try a lower --lr than {config.lr:g}"
    if config.scale_control == "none":
        return f"{lower}, or --scale-control stablegrad-prediction."
    return f"{lower}, or --initialization depth-scaled."
