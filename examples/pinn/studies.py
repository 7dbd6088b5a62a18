"""Named sets of runs: every method with the same rates, seeds and budget.

And what runs are judged by.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from examples.common.comparison import Judge, Measure, Record
from examples.common.optimizers import ScaleControl
from examples.pinn.config import OF_OLDER_RUNS, WEIGHT, Config
from examples.pinn.problems import PROBLEMS

SCORE = "relative_l2"
"""The key of the errors in metrics.json."""

ERROR = Measure(
    "relative L2 error", key=SCORE, lower_is_better=True, threshold=0.1, highest=2.0
)
# Of problems without a known solution.
LOSS = Measure("loss", key="loss", lower_is_better=True, threshold=np.inf, highest=1e6)
JUDGE = Judge(
    measures=(ERROR, LOSS),
    axis="depth",
    defaults={**vars(Config(Path())), **OF_OLDER_RUNS},
    speed="steps_per_second",
)


def final_scores(record: Record) -> np.ndarray:
    """Relative L2 errors by rate and seed, or losses if the solution is not known."""
    return JUDGE.measure_of([record]).scores(record)


def best_rate(scores: np.ndarray) -> int:
    """The index of the learning rate with the best median."""
    return int(np.argmin(np.median(scores, axis=1)))


# --- The sets ---

StudyName = Literal[
    "defaults", "depth", "sgd", "muon", "helmholtz", "burgers", "symptoms", "digits"
]
Options = dict[str, dict[str, Any]]
"""The options of runs, by name."""
ALL = get_args(ScaleControl)
TWO = ("none", "stablegrad")


def methods(optimizer: str, controls: Iterable[str], **options: Any) -> Options:
    """A run for each scale control."""
    return {
        f"{optimizer}-{control}": options
        | {"optimizer": optimizer, "scale_control": control}
        for control in controls
    }


def defaults() -> Options:
    """Every problem that ships, as `train` does it without another option."""
    of_train = dict(vars(Config(Path())))
    for name in ("out", "depth", "resume"):
        del of_train[name]
    return {name: of_train | {"problem": name} for name in PROBLEMS}


def depth() -> Options:
    """How deep a network can be trained, by layers and by terms on one scale."""
    weighted = methods("adam", ALL) | methods("muon", TWO) | methods("lion", TWO)
    balanced = methods("adam", ("none", "clip", "stablegrad")) | methods("muon", TWO)
    return weighted | {
        f"{name}-balanced": options | {"terms": "balanced"}
        for name, options in balanced.items()
    }


def sgd() -> Options:
    """Over more rates: without a scale control its steps scale with the gradient."""
    return methods("sgd", ALL, lr=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1))


def settings_of_stablegrad() -> Options:
    """Muon, adam and lion: which reference, grouping, initialisation and order?"""
    controls = [
        {"scale_control": "none"},
        *(
            {"scale_control": control, "group_by": group_by}
            for control in ("stablegrad", "stablegrad-prediction")
            for group_by in ("layer", "leaf", "tree")
        ),
        {"scale_control": "stablegrad", "order": "after"},
    ]
    runs = itertools.product(("muon", "adam", "lion"), ("glorot", "critical"), controls)
    return {
        "-".join((optimizer, weights, *control.values())): control
        | {"optimizer": optimizer, "initialization": weights}
        for optimizer, weights, control in runs
    }


def helmholtz() -> Options:
    """The setting of Wang, Teng and Perdikaris, at several weights of the boundary.

    128 points inside and on each edge, 40,000 steps. Theirs is the sum of four edges'
    mean squares, ours the mean over all: their weight of 1 is 4 here.
    """
    common = {
        "problem": "helmholtz",
        "width": 50,
        "schedule": "exponential",
        "interior_points": 128,
        "condition_points": 4 * 128,
        "steps": 40_000,
        "checkpoint_every": 2000,
    }
    runs = methods("adam", ALL, **common) | methods("muon", TWO, **common)
    return {
        f"{name}-weight{weight:g}": options | {"condition_weight": weight}
        for weight in (4.0, 100.0, 1000.0)
        for name, options in runs.items()
    }


def burgers() -> Options:
    """Many points, because the shock is thin.

    `--lbfgs-steps` adds L-BFGS after these steps, on 10,000 points.
    """
    common = {
        "problem": "burgers",
        "width": 40,
        "interior_points": 1024,
        "condition_points": 128,
        "steps": 15_000,
        "lbfgs_points": 10_000,
        "checkpoint_every": 3000,
    }
    return methods("adam", ALL, **common) | methods("muon", TWO, **common)


def symptoms() -> Options:
    """What goes wrong, and the same run with the cure: docs/troubleshooting.md."""
    common: dict[str, Any] = {"terms": "balanced", "initialization": "critical"}
    common |= {"width": 50, "lr": (5e-3,), "seeds": 3}
    weighted: dict[str, Any] = {"terms": "weighted", "condition_weight": 1.0}
    heavy = weighted | {"problem": "reaction-diffusion", "condition_weight": 10_000.0}
    wrong: Options = {
        "constant": heavy,
        "flat": {"problem": "hot-plate", "units": "none"},
        "size": weighted | {"problem": "wave-velocity"},
        "noisy": {"problem": "poisson", "schedule": "constant"},
        "diverges": {"problem": "poisson", "optimizer": "adam", "lr": (1.0,)},
        "stays": {"problem": "lotka-volterra"},
    }
    cures: Options = {
        "constant": {"terms": "balanced", "condition_weight": WEIGHT},
        "flat": {"units": "automatic"},
        "size": {"terms": "balanced", "condition_weight": WEIGHT},
        "noisy": {"schedule": "cosine"},
        "diverges": {"lr": (1e-3,)},
        "stays": {"gauss_newton_steps": 100},
    }
    pairs = {name: common | options for name, options in wrong.items()}
    return pairs | {f"{name}-cured": pairs[name] | x for name, x in cures.items()}


def digits() -> Options:
    """How far Gauss-Newton gets, on uniform points and on those drawn by residual.

    Deep networks are other depths: `--depths 16 --only poisson --lr 3e-3`.
    """
    common: dict[str, Any] = {
        "terms": "balanced",
        "initialization": "critical",
        "dtype": "float64",
        "lr": (5e-3,),
        "interior_points": 300,
        "gauss_newton_steps": 400,
    }
    problems: Options = {
        "burgers": {"width": 40, "interior_points": 600, "condition_points": 128},
        "helmholtz": {"width": 50, "interior_points": 800, "condition_points": 200},
        "poisson": {},
        "allen-cahn": {"width": 50},
    }
    return {
        f"{problem}-{points}": common | options | {"problem": problem, "points": points}
        for problem, options in problems.items()
        for points in ("resampled", "adaptive")
    }


STUDIES: dict[StudyName, tuple[tuple[int, ...], Options]] = {
    "defaults": ((Config(Path()).depth,), defaults()),
    "depth": ((4, 8, 16, 32, 64, 128), depth()),
    "sgd": ((16, 64), sgd()),
    "muon": ((64,), settings_of_stablegrad()),
    "helmholtz": ((7,), helmholtz()),
    "burgers": ((16,), burgers()),
    "symptoms": ((5,), symptoms()),
    "digits": ((5,), digits()),
}
"""The depths and runs of each study; depth, sgd and muon are of Poisson."""


def runs(
    study: StudyName,
    folder: Path,
    depths: Sequence[int] | None,
    changes: Mapping[str, Any],
) -> dict[str, Config]:
    """The runs of a study in their folders, by name.

    `changes` that are not None apply to all of them.
    """
    common: dict[str, Any] = {
        "width": 32,
        "lr": (3e-4, 1e-3, 3e-3),
        "steps": 2000,
        "interior_points": 256,
        "condition_points": 64,
        "seeds": 5,
        "terms": "weighted",
        "initialization": "glorot",
        "gauss_newton_steps": 0,
        "points": "resampled",
        "resume": True,
    }
    changed = {name: x for name, x in changes.items() if x is not None}
    usual, runs = STUDIES[study]
    return {
        f"depth{depth}-{name}": Config(
            folder / f"depth{depth}-{name}",
            depth=depth,
            **common | options | changed,
        )
        for depth, (name, options) in itertools.product(depths or usual, runs.items())
    }
