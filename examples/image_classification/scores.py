"""What runs of this program are judged by, and what they are compared over."""

import itertools

import numpy as np

from examples.common.commands import Judge
from examples.common.comparison import Axis, method_labels
from examples.common.measures import Measure
from examples.common.options import defaults
from examples.common.records import Record
from examples.common.runs import RunError
from examples.image_classification.config import Config

SCORE = "test_accuracy"
"""Its entry in metrics.json."""


def final_accuracies(record: Record) -> np.ndarray:
    """Test accuracies, shape (rates, seeds); zero where training stopped."""
    # null in JSON is NaN here.
    return np.nan_to_num(np.asarray(record[SCORE], float), nan=0.0)


ACCURACY = Measure(
    "test accuracy",
    scores=final_accuracies,
    lower_is_better=False,
    threshold=0.9,
    limits=(0.0, 1.0),
    logarithmic=False,
    untrained=(0.0, "not finite"),
    digits=".4f",
)

MODEL = Axis(
    "model",
    "model",
    ignored=frozenset({"seed", "seeds", "log_every", "checkpoint_every"}),
    defaults=defaults(Config),
)


def by_method(runs: list[Record]) -> list[Record]:
    """Runs that differ in rate and seed alone, together as one record.

    Its name is the method, and settings hold `lr`, a list, and `seeds`, a number.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for run, label in zip(runs, method_labels(runs, MODEL), strict=True):
        groups.setdefault((label, run["settings"]["model"]), []).append(run)
    several = len({model for _, model in groups}) > 1
    return [
        _together(runs, f"{model}, {label}" if several else label)
        for (label, model), runs in groups.items()
    ]


def _together(runs: list[Record], name: str) -> Record:
    rates = sorted({run["settings"]["lr"] for run in runs})
    seeds = sorted({run["settings"]["seed"] for run in runs})
    found = {(r["settings"]["lr"], r["settings"]["seed"]): r for r in runs}
    missing = set(itertools.product(rates, seeds)) - set(found)
    if missing or len(found) < len(runs):
        rate, seed = min(missing) if missing else next(iter(found))
        what = "no run" if missing else "more than one run"
        raise RunError(
            f"{name}: every rate needs one run of every seed; there is {what} with a "
            f"rate of {rate:g} and seed {seed}."
        )
    first = runs[0]
    settings = {**first["settings"], "lr": rates, "seeds": len(seeds)}
    del settings["seed"]
    speeds = [run["images_per_second"] for run in runs]
    speeds = [speed for speed in speeds if speed is not None]
    return {
        "name": name,
        "settings": settings,
        SCORE: [[found[r, s][SCORE] for s in seeds] for r in rates],
        "images_per_second": float(np.median(speeds)) if speeds else None,
    }


JUDGE = Judge(SCORE, ACCURACY, MODEL, speed="images_per_second", together=by_method)
