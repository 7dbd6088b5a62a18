"""A problem of the user's own: a Python file that defines PROBLEM."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from examples.common.runs import RunError
from examples.pinn.problems.checks import check, located
from examples.pinn.problems.problem import Problem

KEPT = "problem.py"
"""The copy in the folder of a run."""
DATA = "data.sha256"
"""What tells the data of a run from others, in its folder."""


def source_of(path: Path) -> str:
    """The text of the file."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"--problem {path} cannot be read: {error}.") from None


def is_own(problem: str) -> bool:
    """Whether the name of a problem is that of a file."""
    return problem.endswith(".py")


def keep(problem: str, run: Path) -> None:
    """Copies the file into the folder of a run, which no longer needs the original."""
    if is_own(problem) and not (run / KEPT).exists():
        source = source_of(Path(problem))
        (run / DATA).write_text(fingerprint(load(Path(problem), source)) + "\n")
        (run / KEPT).write_text(source)


def fingerprint(problem: Problem) -> str:
    """A hash of what was measured and of reference data."""
    exact = problem.exact if isinstance(problem.exact, Mapping) else {}
    digest = hashlib.sha256()
    for data in (*(condition.data for condition in problem.conditions), exact):
        for name, values in data.items():
            values = np.asarray(values, np.float64)
            digest.update(f"{name} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def check_unchanged(problem: str, run: Path) -> None:
    """Raises RunError if a run is to be continued with another file or other data."""
    kept, data = run / KEPT, run / DATA
    if not is_own(problem) or not kept.exists():
        return
    if source_of(Path(problem)) != source_of(kept):
        raise RunError(
            f"--resume needs the problem of the run: {problem} has changed since; its "
            f"copy is {kept}. Restore it, or choose another --out."
        )
    now = fingerprint(load(Path(problem), source_of(kept)))
    # Older runs have no hash.
    if data.exists() and data.read_text().strip() != now:
        raise RunError(
            f"--resume needs the data of the run: what {problem} reads or makes has "
            "changed since. Restore it, or choose another --out."
        )


@functools.cache
def load(path: Path, source: str) -> Problem:
    """The PROBLEM that the text of a file defines, checked.

    Its `__file__` is that of the original, so that the copy in a run's folder finds the
    same data. Modules beside the file are not found.
    """
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    with located(path):
        exec(compile(source, str(path), "exec"), vars(module))
    problem = getattr(module, "PROBLEM", None)
    if not isinstance(problem, Problem):
        raise RunError(
            f"{path} must define PROBLEM, a Problem of examples.pinn.problems, got "
            f"{type(problem).__name__ if problem is not None else 'none'}."
        )
    with located(path):
        check(problem)
    return problem
