"""What the single-file examples reach, with several seeds.

python -m benchmarks.minimal_examples [--seeds 3] [--out FILE.json]
"""

import contextlib
import dataclasses
import io

import rich

from benchmarks import common
from examples import minimal_image_classifier, minimal_pinn

EXAMPLES = {
    "minimal_pinn": minimal_pinn.main,
    "minimal_image_classifier": minimal_image_classifier.main,
}


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """What the single-file examples reach, with several seeds."""

    seeds: int = 3
    """Initial weights and orders of points or images."""


def main(options: Options) -> None:
    found = {}
    for name, train in EXAMPLES.items():
        # What they print is for a reader of one run.
        with contextlib.redirect_stdout(io.StringIO()):
            found[name] = [train(seed=seed) for seed in range(options.seeds)]
        rich.print(name, found[name])
    common.save(options, {"results": found})


if __name__ == "__main__":
    common.run(Options, main)
