"""Finished runs as records, from their folders or from a file of collected ones.

A record is what metrics.json holds, and the run's name.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from examples.common.runs import Run, RunError, check_writable, read_json

Record = dict[str, Any]


def read(paths: Iterable[Path], score: str) -> list[Record]:
    """The records of folders of finished runs and of files of collected ones.

    Args:
      paths: folders and JSON files.
      score: the entry of metrics.json that runs of this program are judged by.
    """
    records: list[Record] = []
    for path in paths:
        if path.suffix == ".json":
            records += _read_collected(path, score)
        else:
            run = Run(path)
            metrics = run.metrics
            if score not in metrics:
                raise RunError(f"{path} is no run of this program: no {score} in it.")
            records.append({"name": run.name, **metrics})
    return records


def some(paths: Sequence[Path], command: str) -> Sequence[Path]:
    """The paths; RunError if there are none."""
    if not paths:
        raise RunError(f"{command} needs the folders of one run or more.")
    return paths


def collect(records: Sequence[Record], path: Path) -> None:
    """Writes records to a file, a line for each run."""
    check_writable(path.absolute().parent, "--out")
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    path.write_text('{"runs": [\n' + lines + "\n]}\n")


def _read_collected(path: Path, score: str) -> list[Record]:
    runs = read_json(path, "a folder of collected runs").get("runs")
    keys = {"name", "settings", score}
    if not isinstance(runs, list) or not all(keys <= set(run) for run in runs):
        raise RunError(f"{path} is no file of {score} that `collect` wrote.")
    return runs
