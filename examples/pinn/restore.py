"""What the field of a finished run is made of: its parameters, and points."""

from pathlib import Path
from typing import Any

import numpy as np

from examples.common.runs import Run, RunError
from examples.pinn.config import Config
from examples.pinn.scores import ERROR, final_errors
from examples.pinn.train import Program


def params_of(run: Run, config: Config, rate: int | None, seed: int) -> Any:
    """The parameters of one column; the best learning rate's if `rate` is None."""
    errors = final_errors(run.metrics)
    rate = ERROR.best_rate(errors) if rate is None else rate
    for option, value, number in (
        ("--lr-index", rate, errors.shape[0]),
        ("--seed", seed, errors.shape[1]),
    ):
        if not 0 <= value < number:
            raise RunError(f"{option} must be from 0 to {number - 1}, got {value}.")
    program = Program(config)
    found = run.restore(program.template)
    if found is None:
        raise RunError(f"{run.path} has no checkpoint.")
    program.restore(*found)
    return program.params(rate, seed)


def read_points(path: Path, dimension: int) -> np.ndarray:
    """Points from a NumPy file, checked."""
    wanted = f"--points must be a NumPy file with an array of shape (n, {dimension})"
    try:
        points = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{wanted}, cannot read {path}: {why}") from None
    if not isinstance(points, np.ndarray):
        raise RunError(f"{wanted}, {path} is an archive.")
    if points.ndim != 2 or points.shape[1] != dimension or not len(points):
        raise RunError(f"{wanted}, got {points.shape} in {path}.")
    real = np.issubdtype(points.dtype, np.floating) or np.issubdtype(
        points.dtype, np.integer
    )
    if not real:
        raise RunError(f"{wanted} of real numbers, got {points.dtype} in {path}.")
    if not np.isfinite(points).all():
        raise RunError(f"{wanted} of finite numbers, {path} has others.")
    return points
