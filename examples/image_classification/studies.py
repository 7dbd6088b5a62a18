"""Named sets of runs: every method with the same rates, seeds and budget."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from examples.common.comparison import Judge, Measure
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

    `changes` that are not None are options for all runs.
    """
    changes = {name: x for name, x in changes.items() if x is not None}
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
            rows = JUDGE.rows(JUDGE.read(paths))
            rate = JUDGE.measures[0].at_best_rate(rows)["lr"].iloc[0]
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


JUDGE = Judge(
    measures=(
        Measure(
            "test accuracy",
            key="test_accuracy",
            lower_is_better=False,
            threshold=0.9,
            highest=1.0,
        ),
    ),
    axis="model",
    defaults=vars(Config(Path())),
    speed="images_per_second",
)
