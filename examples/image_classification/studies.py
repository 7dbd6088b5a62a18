"""Named sets of runs: every method with the same rates, seeds and budget."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from examples.common.optimizers import ScaleControl
from examples.common.runs import Run, RunError
from examples.image_classification.config import Config, Norm, Optimizer
from examples.image_classification.scores import ACCURACY, JUDGE

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

STUDIES: dict[StudyName, list[dict[str, Any]]] = {
    "digits": [{"model": "resnet50"}],
    # The published stochastic depth and branches as large as their shortcuts are too
    # much for a budget this small, with BatchNorm as well as without.
    "efficientnet": [
        {
            "model": "efficientnetv2-s",
            "initialization": "depth-scaled",
            "stochastic_depth": 0.0,
        }
    ],
    "fashion-mnist": [
        {
            "model": "resnet18",
            "data": "fashion-mnist",
            "epochs": 5,
            "checkpoint_every": 500,
        }
    ],
    "depth": [
        {"model": model} for model in ("resnet18", "resnet34", "resnet50", "resnet101")
    ],
}
"""Options that differ from the defaults, for each network of a study.

All networks have a quarter of the published width.
"""


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
    grid = itertools.product(
        STUDIES[study],
        OPTIMIZERS,
        METHODS,
        RATES if rates is None else rates,
        SEEDS if seeds is None else seeds,
    )
    found: Runs = {}
    for common, optimizer, (norm, control), lr, seed in grid:
        model = common["model"]
        name = f"{model}-{norm}-{optimizer}-{control}-lr{lr:g}-seed{seed}"
        options = {"width_multiplier": 0.25, **common, **changes}
        found[name] = Config(
            out=folder / name,
            norm=norm,
            optimizer=optimizer,
            scale_control=control,
            lr=lr,
            seed=seed,
            resume=True,
            **options,
        )
    return found


def at_best_rates(runs: Runs, folder: Path) -> Runs:
    """The runs at the best rate of their method.

    The best rate is that of the finished runs in the folder of the study.
    """
    methods = {name: _method(config.settings()) for name, config in runs.items()}
    finished = [run for run in map(Run, sorted(folder.glob("*"))) if run.finished]
    paths = [r.path for r in finished if _method(r.settings) in methods.values()]
    best = {
        _method(record["settings"]): record["settings"]["lr"][
            ACCURACY.best_rate(ACCURACY.scores(record))
        ]
        for record in JUDGE.read(paths)
    }
    rates = {config.lr for config in runs.values()}
    for name, method in methods.items():
        if method not in best:
            raise RunError(
                f"--at-best-rate needs finished runs of each method in {folder}; there "
                f"is none like {name}, of any rate and seed."
            )
        if best[method] not in rates:
            raise RunError(
                f"--at-best-rate: runs like {name} are best at a rate of "
                f"{best[method]:g}, which must be among those of --lr."
            )
    return {
        name: config
        for name, config in runs.items()
        if config.lr == best[methods[name]]
    }


def _method(settings: Mapping[str, Any]) -> str:
    """All settings except rate and seed, as a key."""
    tried = ("lr", "seed", "seeds")
    kept = {name: x for name, x in settings.items() if name not in tried}
    return json.dumps(kept, sort_keys=True)
