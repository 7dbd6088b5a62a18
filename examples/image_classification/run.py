"""A training run: from its beginning or its last checkpoint to its results."""

import collections
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from tensorboardX import SummaryWriter

from examples.common import progress
from examples.common.runs import DivergedError, Recording
from examples.image_classification import data
from examples.image_classification.config import Config
from examples.image_classification.mesh import connect
from examples.image_classification.train import Program, State, program_of

MEMORY = 100
"""Steps among which the cause of a loss that is not finite is looked for."""
JUMP = 10.0
"""A scale that is so many times its median before has left its usual range."""


class LossError(DivergedError):
    """The loss is no longer finite."""

    def __init__(self, message: str, step: int, layer: str | None):
        super().__init__(message)
        self.step, self.layer = step, layer


def train(config: Config, console: Console) -> None:
    """Trains to the end; raises LossError where the loss does not stay finite."""
    config.check()
    connect(config)
    console.quiet = jax.process_index() > 0
    # Options that do not go together are an error before a folder is made.
    program = program_of(config)
    with Recording(config.out, config.settings(), resume=config.resume) as run:
        if run.finished:
            console.print(f"{config.out} is finished already: nothing to do.")
            return
        found = run.resume(lambda step: program.state)
        if found is not None:
            console.print(f"Resumed at step {found[0]}.")
        step, state = found or (0, program.start(config.seed, config.lr))
        compiled, stopped = program.compile_seconds, None
        seconds: list[float] = []
        try:
            _advance(program, config, step, state, seconds, run, console)
        except LossError as error:
            stopped = error

        def results() -> dict[str, Any]:
            accuracies = [x["test_accuracy"] for x in run.history() if "epoch" in x]
            # Of a run that was killed behind its last step there are none.
            step_seconds = float(np.median(seconds)) if seconds else None
            speed = config.batch_size / step_seconds if step_seconds else None
            return {
                "test_accuracy": None if stopped else accuracies[-1],
                "stopped_at_step": stopped.step if stopped else -1,
                "first_layer_to_go": stopped.layer if stopped else None,
                "step_seconds": step_seconds,
                "images_per_second": speed,
                "compile_seconds": program.compile_seconds - compiled,
                "data": {
                    "name": config.data,
                    "training_images": len(program.dataset.train.labels),
                    "test_images": len(program.dataset.test.labels),
                },
                "mesh": dict(program.mesh.shape),
                "processes": jax.process_count(),
            }

        run.finish(results)
        if stopped is not None:
            raise stopped


def _advance(
    program: Program,
    config: Config,
    step: int,
    state: State,
    seconds: list[float],
    run: Recording,
    console: Console,
) -> None:
    """Trains to the end; writes history, events and checkpoints.

    The steps between two lines of the history are looked at together. Their mean time
    is added to `seconds`.
    """
    scales: collections.deque[Mapping[str, float]] = collections.deque(maxlen=MEMORY)
    per_epoch, total = program.steps_per_epoch, program.total_steps
    batches = data.training(program.dataset, config, range(step, total))
    name = f"{config.model} on {config.data}"
    bar = progress.Steps(console, name, total, step)
    # Events that a killed run wrote after its last checkpoint are hidden.
    events = SummaryWriter(
        str(run.path / "events"),
        purge_step=step,
        write_to_disk=jax.process_index() == 0,
    )
    with bar, events:
        while step < total:
            start, compiled = time.perf_counter(), program.compile_seconds
            reports: list[dict[str, Any]] = []
            at_end = False
            while not reports or (step % config.log_every and not at_end):
                state, report = program.advance(
                    state, next(batches), step, config.seed, config.lr
                )
                reports.append(report)
                step += 1
                at_end = step % per_epoch == 0
            reports = jax.device_get(reports)
            gone = time.perf_counter() - start - (program.compile_seconds - compiled)
            seconds.append(gone / len(reports))
            last = reports[-1]["layer_scales"].items()
            rounded = {layer: float(f"{scale:.4g}") for layer, scale in last}
            entry = {"step": step, "layer_scales": rounded}
            shown = {
                name: float(np.mean([report[name] for report in reports]))
                for name in ("loss", "train_accuracy")
            }
            if at_end:
                entry["epoch"] = step // per_epoch
                shown |= program.test(state)
            run.append(entry | shown)
            for at, report in enumerate(reports, step - len(reports)):
                scales.append(report["layer_scales"])
                if not np.isfinite(report["loss"]):
                    raise diverged(config, at, report["loss"], scales)
            for tag, value in shown.items():
                events.add_scalar(tag, value, step)
            now = f"loss {shown['loss']:.3g}, "
            now += f"{config.batch_size / seconds[-1]:.0f} images/s"
            if at_end:
                now += f", test accuracy {shown['test_accuracy']:.4f}"
            bar.show(step, now)
            if at_end or step % config.checkpoint_every < len(reports):
                run.save(step, state)


def diverged(
    config: Config, step: int, loss: float, scales: Sequence[Mapping[str, float]]
) -> LossError:
    """Names the layer whose gradient was the first to leave its usual range.

    `scales` are those of each layer up to the step, oldest first.
    """
    layer, why = None, "the gradients gave no warning"
    values = np.array([list(of_step.values()) for of_step in scales])
    for i in range(1, len(values)):
        usual = np.median(values[:i], axis=0)
        ratios = np.divide(values[i], usual, out=np.ones_like(usual), where=usual > 0)
        ratios = np.where(np.isfinite(values[i]), ratios, np.inf)
        if ratios.max() >= JUMP and ratios.min() < ratios.max():
            layer = list(scales[0])[ratios.argmax()]
            how = f"was {ratios.max():.0f} times its median before"
            if np.isinf(ratios.max()):
                how = "was no longer finite"
            at = step + 1 - len(values) + i
            why = f"the gradient of {layer} went first: its scale {how} at step {at}"
            break
    other = "--initialization depth-scaled"
    if config.scale_control == "none":
        other = "--scale-control stablegrad-prediction"
    hint = f"Try a lower --lr than {config.lr:g}, or {other}."
    return LossError(f"the loss is {loss} at step {step}; {why}. {hint}", step, layer)
