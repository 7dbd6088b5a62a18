"""Named sets of runs: every method with the same rates, seeds and budget."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from examples.common.optimizers import ScaleControl
from examples.pinn.config import Config, Optimizer

StudyName = Literal["depth", "muon", "helmholtz", "burgers"]
Runs = dict[str, Config]

RATES = (3e-4, 1e-3, 3e-3)
SEEDS = 5
CONTROLS: tuple[ScaleControl, ...] = get_args(ScaleControl)
ADAM_AND_MUON: tuple[tuple[Optimizer, ScaleControl], ...] = (
    *(("adam", control) for control in CONTROLS),
    ("muon", "none"),
    ("muon", "stablegrad"),
)
STABLEGRAD: tuple[ScaleControl, ...] = ("stablegrad", "stablegrad-prediction")


def depth(depths: Sequence[int] = (4, 8, 16, 32, 64, 128)) -> Runs:
    """Poisson at every depth, by adam behind each scale control, lion and muon."""
    methods: list[tuple[Optimizer, ScaleControl]] = [
        *ADAM_AND_MUON,
        ("lion", "none"),
        ("lion", "stablegrad"),
    ]
    return {
        f"depth{depth}-{optimizer}-{control}": _run(
            depth=depth, optimizer=optimizer, scale_control=control
        )
        for depth in depths
        for optimizer, control in methods
    }


def muon(depths: Sequence[int] = (64,)) -> Runs:
    """Poisson by muon, adam, lion: which reference, grouping, initialisation, order?"""
    controls = [
        {"scale_control": "none"},
        *(
            {"scale_control": control, "group_by": group_by}
            for control in STABLEGRAD
            for group_by in ("layer", "leaf", "tree")
        ),
        {"scale_control": "stablegrad", "order": "after"},
    ]
    return {
        "-".join((f"depth{depth}", optimizer, initialization, *control.values())): _run(
            depth=depth,
            optimizer=optimizer,
            initialization=initialization,
            **control,
        )
        for depth, optimizer, initialization, control in itertools.product(
            depths, ("muon", "adam", "lion"), ("glorot", "critical"), controls
        )
    }


def helmholtz(depths: Sequence[int] = (7,)) -> Runs:
    """Wang, Teng and Perdikaris' setting, at several weights of the boundary.

    128 points inside and on each edge, 40,000 steps. Theirs is the sum of four edges'
    mean squares, ours the mean over all: their weight of 1 is 4 here.
    """
    return {
        f"depth{depth}-{optimizer}-{control}-weight{weight:g}": _run(
            problem="helmholtz",
            depth=depth,
            width=50,
            optimizer=optimizer,
            scale_control=control,
            condition_weight=weight,
            schedule="exponential",
            interior_points=128,
            condition_points=4 * 128,
            steps=40_000,
            checkpoint_every=2000,
        )
        for depth in depths
        for weight in (4.0, 100.0, 1000.0)
        for optimizer, control in ADAM_AND_MUON
    }


def burgers(depths: Sequence[int] = (16,)) -> Runs:
    """Burgers by adam behind each scale control, and muon.

    Many points: the shock is thin. L-BFGS behind them, on 10,000 points, lowered the
    loss and raised the error; `--lbfgs-steps` adds it.
    """
    return {
        f"depth{depth}-{optimizer}-{control}": _run(
            problem="burgers",
            depth=depth,
            width=40,
            optimizer=optimizer,
            scale_control=control,
            interior_points=1024,
            condition_points=128,
            steps=15_000,
            lbfgs_points=10_000,
            checkpoint_every=3000,
        )
        for depth in depths
        for optimizer, control in ADAM_AND_MUON
    }


STUDIES: dict[StudyName, Callable[..., Runs]] = {
    "depth": depth,
    "muon": muon,
    "helmholtz": helmholtz,
    "burgers": burgers,
}


def runs(
    study: StudyName,
    folder: Path,
    depths: Sequence[int] | None,
    changes: Mapping[str, Any],
) -> Runs:
    """The runs of a study in their folders, by name; `changes` hold for all of them."""
    options = {} if depths is None else {"depths": depths}
    return {
        name: dataclasses.replace(config, out=folder / name, **changes)
        for name, config in STUDIES[study](**options).items()
    }


def _run(**options: Any) -> Config:
    """What the runs of all studies have in common; `runs` says where they go."""
    return Config(out=Path(), lr=RATES, seeds=SEEDS, resume=True, **options)
