"""Finished runs as records, from their folders or from a file of collected ones.

A record is what metrics.json holds, and the run's name.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.common.runs import Run, RunError, check_writable, read_json

TRAINED = 0.1
"""A seed counts as trained below this relative L2 error; u = 0 has error 1."""

Record = dict[str, Any]


def read(paths: Iterable[Path]) -> list[Record]:
    """The records of folders of finished runs and of files of collected ones."""
    records: list[Record] = []
    for path in paths:
        if path.suffix == ".json":
            records += _read_collected(path)
        else:
            run = Run(path)
            records.append({"name": run.name, **run.metrics})
    return records


def collect(records: Sequence[Record], path: Path) -> None:
    """Writes records to a file, a line for each run."""
    check_writable(path.absolute().parent, "--out")
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    path.write_text('{"runs": [\n' + lines + "\n]}\n")


def final_errors(record: Record) -> np.ndarray:
    """Relative L2 errors, shape (rates, seeds); infinite where training stopped."""
    # What was not finite is null in JSON, and NaN here.
    errors = np.asarray(record["relative_l2"], float)
    stopped = np.asarray(record["stopped_at_step"]) >= 0
    return np.where(stopped | np.isnan(errors), np.inf, errors)


def best_rate(errors: np.ndarray) -> int:
    """The index of the learning rate with the lowest median error."""
    return int(np.argmin(np.median(errors, axis=1)))


def quartiles(errors: np.ndarray) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the seeds; may be infinite."""
    # Of seeds that there are: between a number and infinity lies nothing.
    low, high = np.quantile(errors, [0.25, 0.75], method="nearest")
    return float(low), float(np.median(errors)), float(high)


def trained(errors: np.ndarray) -> int:
    """How many seeds trained."""
    return int(np.sum(errors < TRAINED))


def _read_collected(path: Path) -> list[Record]:
    runs = read_json(path, "a folder of collected runs").get("runs")
    keys = {"name", "settings", "relative_l2", "stopped_at_step"}
    if not isinstance(runs, list) or not all(keys <= set(run) for run in runs):
        raise RunError(f"{path} is no file that `collect` wrote.")
    return runs
