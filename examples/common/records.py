"""Finished runs as records, from their folders or from a file that `collect` wrote.

A record holds the run's name and what its metrics.json holds.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from examples.common.runs import Run, RunError, check_writable, read_json

Record = dict[str, Any]


def read(paths: Iterable[Path], scores: Collection[str]) -> list[Record]:
    """The records of finished runs.

    Args:
      paths: folders of runs, and JSON files of collected runs.
      scores: the keys in metrics.json by which this program judges runs.
    """
    records: list[Record] = []
    for path in paths:
        if path.suffix == ".json":
            records += _read_collected(path, scores)
        else:
            run = Run(path)
            record = {"name": run.name, **run.metrics}
            if record.keys().isdisjoint(scores):
                names = " or ".join(sorted(scores))
                raise RunError(f"{path} is no run of this program: no {names} in it.")
            records.append(record)
    return records


def some(paths: Sequence[Path], command: str) -> Sequence[Path]:
    """The paths; RunError if there are none."""
    if not paths:
        raise RunError(f"{command} needs the folders of one run or more.")
    return paths


def collect(records: Sequence[Record], path: Path) -> None:
    """Writes records to a file, one line for each run."""
    check_writable(path.absolute().parent, "--out")
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    path.write_text('{"runs": [\n' + lines + "\n]}\n")


def _read_collected(path: Path, scores: Collection[str]) -> list[Record]:
    content = read_json(path, "a folder of collected runs")
    runs, shared = content.get("runs"), content.get("settings", {})
    if not isinstance(runs, list) or not all(
        {"name", "settings"} <= run.keys() and run.keys() & scores for run in runs
    ):
        names = " or ".join(sorted(scores))
        raise RunError(f"{path} is no file of {names} that `collect` wrote.")
    return [run | {"settings": shared | run["settings"]} for run in runs]
