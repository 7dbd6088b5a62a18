r"""What a training step of an image classifier costs, over that with BatchNorm.

python -m benchmarks.image_steps [--model resnet50] [--out FILE.json]

The same network, images and optimizer with BatchNorm, without, and with each scale
control in its place, in one run, in random order in each round. On an accelerator:

python -m benchmarks.image_steps --width-multiplier 1 --data fashion-mnist \
    --dtype bfloat16 --rounds 100
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks import common
from examples.image_classification import data
from examples.image_classification.config import Config, DataName, ModelName
from examples.image_classification.train import Program

CONTROLS = {
    "BatchNorm": {"norm": "batch", "scale_control": "none"},
    "nothing": {"scale_control": "none"},
    **{
        name: {"scale_control": name}
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
        config = Config(out=Path(), **settings, **control)
        program = Program(config)
        batch = next(data.training(program.dataset, config, range(1)))

        def step(state):
            return program.advance(state, batch, 0, config.seed, config.lr)[0]

        state = step(program.start(config.seed, config.lr))
        found = {"compile_seconds": program.compile_seconds}
        return found, common.repeated(step, state)

    makers = {name: partial(step_of, control) for name, control in CONTROLS.items()}
    found = common.compare(makers, options.rounds)
    title = f"steps of {options.model}, {options.batch_size} images"
    common.show(title, found, compile_seconds=".1f")
    common.save(options, {"methods": found})


if __name__ == "__main__":
    common.run(Options, main)
