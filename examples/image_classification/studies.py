"""Named sets of runs: every method with the same rates, seeds and budget."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from examples.common.optimizers import ScaleControl
from examples.common.runs import Run, RunError
from examples.image_classification.config import Config, Optimizer
from examples.image_classification.scores import ACCURACY, JUDGE

StudyName = Literal["digits", "efficientnet", "fashion-mnist", "depth"]
Runs = dict[str, Config]
Norm = Literal["batch", "none"]

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


def digits(**common: Any) -> Runs:
    """ResNet-50 at a quarter of its width on scikit-learn's digits."""
    return _grid({"model": "resnet50", "width_multiplier": 0.25, **common})


def efficientnet(**common: Any) -> Runs:
    """EfficientNetV2-S at a quarter of its width on digits.

    The published stochastic depth and branches as large as their shortcuts are too
    much for a budget this small, with BatchNorm as well as without.
    """
    return _grid(
        {
            "model": "efficientnetv2-s",
            "width_multiplier": 0.25,
            "initialization": "depth-scaled",
            "stochastic_depth": 0.0,
            **common,
        }
    )


def fashion_mnist(**common: Any) -> Runs:
    """ResNet-18 at a quarter of its width on Fashion-MNIST."""
    return _grid(
        {
            "model": "resnet18",
            "width_multiplier": 0.25,
            "data": "fashion-mnist",
            "epochs": 5,
            "checkpoint_every": 500,
            **common,
        }
    )


def depth(**common: Any) -> Runs:
    """ResNets of 18 to 101 layers on digits."""
    runs: Runs = {}
    for model in ("resnet18", "resnet34", "resnet50", "resnet101"):
        runs |= _grid({"model": model, "width_multiplier": 0.25, **common})
    return runs


STUDIES: dict[StudyName, Callable[..., Runs]] = {
    "digits": digits,
    "efficientnet": efficientnet,
    "fashion-mnist": fashion_mnist,
    "depth": depth,
}


def runs(
    study: StudyName,
    folder: Path,
    rates: Sequence[float] | None,
    seeds: Sequence[int] | None,
    changes: Mapping[str, Any],
) -> Runs:
    """The runs of a study in their folders, by name; `changes` hold for all of them."""
    grid = {"rates": rates, "seeds": seeds}
    grid = {name: x for name, x in grid.items() if x is not None}
    return {
        name: dataclasses.replace(config, out=folder / name, **changes)
        for name, config in STUDIES[study](**grid).items()
    }


def at_best_rates(runs: Runs, folder: Path) -> Runs:
    """Of some runs those at the best rate of their method.

    Rates are judged by the finished runs in the folder of the study.
    """
    methods = {_method(config.settings()) for config in runs.values()}
    finished = [run for run in map(Run, sorted(folder.glob("*"))) if run.finished]
    paths = [run.path for run in finished if _method(run.settings) in methods]
    best = {
        _method(record["settings"]): record["settings"]["lr"][
            ACCURACY.best_rate(ACCURACY.scores(record))
        ]
        for record in JUDGE.read(paths)
    }
    rates = {config.lr for config in runs.values()}
    for name, config in runs.items():
        rate = best.get(_method(config.settings()))
        if rate is None:
            raise RunError(
                f"--at-best-rate needs finished runs of each method in {folder}; there "
                f"is none like {name}, of any rate and seed."
            )
        if rate not in rates:
            raise RunError(
                f"--at-best-rate: runs like {name} are best at a rate of {rate:g}, "
                "which must be among those of --lr."
            )
    return {
        name: config
        for name, config in runs.items()
        if config.lr == best[_method(config.settings())]
    }


def _method(settings: Mapping[str, Any]) -> str:
    """All settings but those that a method is tried with."""
    tried = ("lr", "seed", "seeds")
    kept = {name: x for name, x in settings.items() if name not in tried}
    return json.dumps(kept, sort_keys=True)


def _grid(options: Mapping[str, Any]) -> Runs:
    """Every method by every base optimizer, rate and seed."""
    options = dict(options)
    rates, seeds = options.pop("rates", RATES), options.pop("seeds", SEEDS)
    grid = itertools.product(OPTIMIZERS, METHODS, rates, seeds)
    return {
        f"{options['model']}-{norm}-{optimizer}-{control}-lr{lr:g}-seed{seed}": Config(
            out=Path(),
            norm=norm,
            optimizer=optimizer,
            scale_control=control,
            lr=lr,
            seed=seed,
            resume=True,
            **options,
        )
        for optimizer, (norm, control), lr, seed in grid
    }
