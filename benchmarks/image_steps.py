r"""What a training step of an image classifier costs, over that with BatchNorm.

python -m benchmarks.image_steps [--model resnet50] [--out FILE.json]

The same network, images and optimizer with BatchNorm, without, and with each scale
control in its place, in one run, in random order in each round. On an accelerator:

python -m benchmarks.image_steps --width-multiplier 1 --data fashion-mnist \
    --dtype bfloat16 --rounds 100
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks import common
from examples.common.runs import RunError
from examples.image_classification.config import Config, DataName, ModelName
from examples.image_classification.train import Program

CONTROLS = {
    "BatchNorm": {"norm": "batch", "scale_control": "none"},
    "nothing": {"norm": "none", "scale_control": "none"},
    **{
        name: {"norm": "none", "scale_control": name}
        for name in ("clip", "agc", "stablegrad", "stablegrad-prediction")
    },
}


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """What a training step of an image classifier costs, over that with BatchNorm."""

    model: ModelName = "resnet50"
    width_multiplier: float = 0.25
    data: DataName = "digits"
    data_dir: Path | None = None
    batch_size: int = 128
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 20
    """Timed steps for each method."""


def main(options: Options) -> None:
    settings = dataclasses.asdict(options)
    del settings["rounds"], settings["out"]

    def step_of(control):
        program = Program(Config(out=Path(), **settings, **control))
        program.start()
        batch = next(program.batches())
        program.advance(batch)
        found = {"compile_seconds": program.compile_seconds}
        return found, lambda: program.advance(batch)

    found = common.compare(
        {name: partial(step_of, control) for name, control in CONTROLS.items()},
        options.rounds,
    )
    title = f"steps of {options.model}, {options.batch_size} images"
    common.show(title, found, compile_seconds=".1f")
    common.save(options, {"methods": found})


if __name__ == "__main__":
    try:
        common.run(Options, main)
    except RunError as error:
        sys.exit(f"error: {error}")
