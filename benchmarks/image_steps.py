r"""What a training step of an image classifier costs, over that with BatchNorm.

python -m benchmarks.image_steps [--model resnet50] [--out FILE.json]

The same network, images and optimizer with BatchNorm, without, and with each scale
control in its place, in one run, in random order in each round. On an accelerator:

python -m benchmarks.image_steps --width-multiplier 1 --data fashion-mnist \
    --dtype bfloat16 --rounds 100
"""

import dataclasses
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.overhead import environment
from examples.image_classification.config import Config, DataName, ModelName, Optimizer
from examples.image_classification.train import Program

WITH_BATCH_NORM = "BatchNorm"
WITHOUT = "nothing"
CONTROLS: dict[str, dict[str, Any]] = {
    WITH_BATCH_NORM: {"norm": "batch", "scale_control": "none"},
    WITHOUT: {"norm": "none", "scale_control": "none"},
    "clip": {"norm": "none", "scale_control": "clip"},
    "agc": {"norm": "none", "scale_control": "agc"},
    "stablegrad": {"norm": "none", "scale_control": "stablegrad"},
    "stablegrad-prediction": {"norm": "none", "scale_control": "stablegrad-prediction"},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a training step of an image classifier costs, over that with BatchNorm."""

    model: ModelName = "resnet50"
    width_multiplier: float = 0.25
    data: DataName = "digits"
    data_dir: Path | None = None
    optimizer: Optimizer = "sgd"
    batch_size: int = 128
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 20
    """Timed steps for each method."""
    out: Path | None = None
    """JSON file for the results; none by default."""


class Steps:
    """A training program whose steps are called one by one."""

    def __init__(self, config: Config):
        program = Program(config)
        program.start()
        self._functions, self._state = program.functions, program.state
        first = next(program.batches())
        self._batch = program.layout.put(first)
        self.compile_seconds = self._functions.compile(*self._arguments())
        self()  # the first call is slower

    def __call__(self) -> float:
        """Seconds of a step."""
        start = time.perf_counter()
        self._state, report = self._functions.advance(*self._arguments())
        jax.block_until_ready((self._state, report))
        return time.perf_counter() - start

    def _arguments(self):
        return self._state, self._batch, np.int32(1), np.uint32(0), np.float32(1e-4)


def measure(options: Options) -> dict[str, dict[str, Any]]:
    """Compile seconds and the seconds of each step, by method."""
    settings = dataclasses.asdict(options)
    del settings["rounds"], settings["out"]
    steps = {
        name: Steps(Config(out=Path(), **settings, **control))
        for name, control in track(CONTROLS.items(), "compiling")
    }
    found: dict[str, dict[str, Any]] = {
        name: {"compile_seconds": step.compile_seconds, "seconds": []}
        for name, step in steps.items()
    }
    order = random.Random(0)
    for _ in track(range(options.rounds), "steps"):
        for name in order.sample(sorted(steps), len(steps)):
            found[name]["seconds"].append(steps[name]())
    return found


def ratio(found: dict[str, dict[str, Any]], name: str, over: str) -> float:
    """Of the medians of two methods."""
    medians = (statistics.median(found[x]["seconds"]) for x in (name, over))
    return next(medians) / next(medians)


def table(found: dict[str, dict[str, Any]], batch_size: int) -> Table:
    rendered = Table(box=box.SIMPLE_HEAD)
    rendered.add_column("instead of BatchNorm")
    for column in ("images/s", "over BatchNorm", "over nothing", "compile s"):
        rendered.add_column(column, justify="right")
    for name, numbers in found.items():
        rendered.add_row(
            name,
            f"{batch_size / statistics.median(numbers['seconds']):.0f}",
            f"{ratio(found, name, WITH_BATCH_NORM):.2f}",
            f"{ratio(found, name, WITHOUT):.2f}",
            f"{numbers['compile_seconds']:.1f}",
        )
    return rendered


def main(options: Options) -> None:
    console = Console()
    found = measure(options)
    console.print(table(found, options.batch_size))
    if options.out is not None:
        settings = dataclasses.asdict(options) | {"data_dir": None, "out": None}
        record = environment() | {"settings": settings, "methods": found}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        console.print(f"Numbers: {options.out}", soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
