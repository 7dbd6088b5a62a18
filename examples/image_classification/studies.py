"""Named sets of runs: every method with the same rates, seeds and budget."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from examples.common.command_line import defaults
from examples.common.comparison import Axis, Judge, Measure, Record, method_labels
from examples.common.optimizers import ScaleControl
from examples.common.runs import Run, RunError
from examples.image_classification.config import Config, ModelName, Norm, Optimizer

StudyName = Literal["digits", "efficientnet", "fashion-mnist", "depth"]
Runs = dict[str, Config]

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (0, 1, 2)
METHODS: tuple[tuple[Norm, ScaleControl], ...] = (
    ("batch", "none"),
    ("none", "none"),
    ("none", "clip"),
    ("none", "agc"),
    ("none", "stablegrad"),
    ("none", "stablegrad-prediction"),
)
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "adam")

STUDIES: dict[StudyName, tuple[tuple[ModelName, ...], dict[str, Any]]] = {
    "digits": (("resnet50",), {}),
    # The published stochastic depth and branches as large as their shortcuts are too
    # much for a budget this small, with BatchNorm as well as without.
    "efficientnet": (
        ("efficientnetv2-s",),
        {"initialization": "depth-scaled", "stochastic_depth": 0.0},
    ),
    "fashion-mnist": (
        ("resnet18",),
        {"data": "fashion-mnist", "epochs": 5, "checkpoint_every": 500},
    ),
    "depth": (("resnet18", "resnet34", "resnet50", "resnet101"), {}),
}
"""The networks of a study, of a quarter of the published width, and their options."""


def runs(
    study: StudyName,
    folder: Path,
    rates: Sequence[float] | None,
    seeds: Sequence[int] | None,
    changes: Mapping[str, Any],
) -> Runs:
    """Every method with every base optimizer, rate and seed, by name of its folder.

    `changes` are options for all runs.
    """
    models, options = STUDIES[study]
    options = {"width_multiplier": 0.25, "resume": True, **options, **changes}
    grid = itertools.product(
        models, OPTIMIZERS, METHODS, rates or RATES, seeds or SEEDS
    )
    found: Runs = {}
    for model, optimizer, (norm, control), lr, seed in grid:
        name = f"{model}-{norm}-{optimizer}-{control}-lr{lr:g}-seed{seed}"
        found[name] = Config(
            out=folder / name,
            model=model,
            norm=norm,
            optimizer=optimizer,
            scale_control=control,
            lr=lr,
            seed=seed,
            **options,
        )
    return found


def at_best_rates(runs: Runs, folder: Path) -> Runs:
    """The runs at the best rate of their method among its finished runs."""
    finished = [run for run in map(Run, sorted(folder.glob("*"))) if run.finished]
    chosen: Runs = {}
    for method, names in itertools.groupby(runs, lambda name: name.partition("-lr")[0]):
        configs = {name: runs[name] for name in names}
        wanted = _method(next(iter(configs.values())).settings())
        paths = [run.path for run in finished if _method(run.settings) == wanted]
        rate = None
        if paths:
            (record,) = JUDGE.read(paths)
            best = ACCURACY.best_rate(ACCURACY.scores(record))
            rate = record["settings"]["lr"][best]
        of_rate = {name: x for name, x in configs.items() if x.lr == rate}
        if not of_rate:
            raise RunError(
                f"--at-best-rate needs finished runs of {method} in {folder}, and the "
                f"best of their rates, {rate}, among those of --lr."
            )
        chosen |= of_rate
    return chosen


def _method(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings except rate and seed."""
    return {name: x for name, x in settings.items() if name not in ("lr", "seed")}


# --- How runs are judged and compared ---


def final_accuracies(record: Record) -> list[np.ndarray]:
    """Test accuracies by rate and seed; zero where the loss was not finite."""
    # null in JSON is NaN here.
    return [np.nan_to_num(np.array(row, float)) for row in record["test_accuracy"]]


def by_method(runs: list[Record]) -> list[Record]:
    """Joins runs that differ only in rate and seed into one record.

    Its name is the method; `lr` of the settings is the list of rates. Of the scores of
    a rate, those of seeds that all rates have come first.
    """
    several = len({run["settings"]["model"] for run in runs}) > 1
    methods: dict[str, dict[float, dict[int, Record]]] = {}
    for run, label in zip(runs, method_labels(runs, MODEL), strict=True):
        model, lr, seed = (run["settings"][name] for name in ("model", "lr", "seed"))
        name = f"{model}, {label}" if several else label
        of_rate = methods.setdefault(name, {}).setdefault(lr, {})
        if seed in of_rate:
            raise RunError(
                f"{name}: more than one run has a rate of {lr:g} and seed {seed}."
            )
        of_rate[seed] = run
    return [_together(name, by_rate) for name, by_rate in methods.items()]


def _together(name: str, by_rate: dict[float, dict[int, Record]]) -> Record:
    common = set.intersection(*map(set, by_rate.values()))
    rows = [
        [of_seed[seed] for seed in sorted(of_seed, key=lambda s: (s not in common, s))]
        for _, of_seed in sorted(by_rate.items())
    ]
    speeds = [run["images_per_second"] for row in rows for run in row]
    speeds = [speed for speed in speeds if speed is not None]
    return {
        "name": name,
        "settings": {**rows[0][0]["settings"], "lr": sorted(by_rate)},
        "test_accuracy": [[run["test_accuracy"] for run in row] for row in rows],
        "images_per_second": float(np.median(speeds)) if speeds else None,
    }


ACCURACY = Measure(
    "test accuracy",
    key="test_accuracy",
    scores=final_accuracies,
    lower_is_better=False,
    threshold=0.9,
    limits=(0.0, 1.0),
)
MODEL = Axis(
    "model",
    "model",
    ignored=frozenset({"seed", "log_every", "checkpoint_every"}),
    defaults=defaults(Config),
)
JUDGE = Judge((ACCURACY,), MODEL, speed="images_per_second", together=by_method)
