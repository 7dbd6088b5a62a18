"""How runs of this program are scored and compared."""

import numpy as np

from examples.common.command_line import defaults
from examples.common.comparison import Axis, Judge, Measure, Record, method_labels
from examples.common.runs import RunError
from examples.image_classification.config import Config

SCORE = "test_accuracy"
"""The key in metrics.json."""


def final_accuracies(record: Record) -> list[np.ndarray]:
    """Test accuracies by rate and seed; zero where the loss was not finite."""
    # null in JSON is NaN here.
    return [np.nan_to_num(np.asarray(row, float), nan=0.0) for row in record[SCORE]]


ACCURACY = Measure(
    "test accuracy",
    key=SCORE,
    scores=final_accuracies,
    lower_is_better=False,
    threshold=0.9,
    limits=(0.0, 1.0),
)

MODEL = Axis(
    "model",
    "model",
    ignored=frozenset({"seed", "seeds", "log_every", "checkpoint_every"}),
    defaults=defaults(Config),
)


def by_method(runs: list[Record]) -> list[Record]:
    """Joins runs that differ only in rate and seed into one record.

    Its name is the method; `lr` of the settings is the list of rates, and `seeds` has
    the list of seeds of each rate. Seeds that all rates have come first.
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
    scores: dict[float, dict[int, float | None]] = {}
    for run in runs:
        rate, seed = run["settings"]["lr"], run["settings"]["seed"]
        if seed in scores.setdefault(rate, {}):
            raise RunError(
                f"{name}: there is more than one run with a rate of {rate:g} and seed "
                f"{seed}."
            )
        scores[rate][seed] = run[SCORE]
    scores = {rate: scores[rate] for rate in sorted(scores)}
    common = set.intersection(*map(set, scores.values()))
    if not common:
        raise RunError(
            f"{name}: a rate is chosen by the seeds that all rates have, and there is "
            f"none among {', '.join(f'{rate:g}' for rate in scores)}."
        )
    order = [
        sorted(seeds, key=lambda seed: (seed not in common, seed))
        for seeds in scores.values()
    ]
    settings = {**runs[0]["settings"], "lr": list(scores), "seeds": order}
    del settings["seed"]
    speeds = [run["images_per_second"] for run in runs if run["images_per_second"]]
    by_rate = zip(scores.values(), order, strict=True)
    return {
        "name": name,
        "settings": settings,
        SCORE: [[of_seed[seed] for seed in seeds] for of_seed, seeds in by_rate],
        "images_per_second": float(np.median(speeds)) if speeds else None,
    }


JUDGE = Judge((ACCURACY,), MODEL, speed="images_per_second", together=by_method)
