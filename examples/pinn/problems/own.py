"""A problem of the user's own: a Python file that defines PROBLEM."""

import functools
import hashlib
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import jax
import numpy as np

from examples.common.runs import RunError
from examples.pinn.problems.problem import Problem

KEPT = "problem.py"
"""The copy in the folder of a run."""


def source_of(path: Path) -> str:
    """The text of the file."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"--problem {path} cannot be read: {error}.") from None


def fingerprint(path: Path) -> str:
    """A hash of the file, and of what it measured and of its reference data."""
    source = source_of(path)
    problem = load(path, source)
    digest = hashlib.sha256(source.encode())
    exact = problem.exact if isinstance(problem.exact, Mapping) else {}
    for data in (*(condition.data for condition in problem.conditions), exact):
        for name, values in data.items():
            digest.update(name.encode() + np.asarray(values, np.float64).tobytes())
    return digest.hexdigest()


@functools.cache
def load(path: Path, source: str) -> Problem:
    """The PROBLEM that the text of a file defines, checked.

    Its `__file__` is that of the original, so that the copy in a run's folder finds the
    same data. Modules beside the file are not found.
    """
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), vars(module))
        problem = getattr(module, "PROBLEM", None)
        if not isinstance(problem, Problem):
            raise TypeError("the file must define PROBLEM, a Problem")
        problem.check()
    except Exception as error:
        # One line, with the number of the line in the user's file.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        place = f"{path}:{lines[-1]}" if lines else f"{path}"
        what = in_plain_words(error) or f"{type(error).__name__}: {error}"
        raise RunError(f"{place}: {what}") from error
    return problem


def in_plain_words(error: Exception) -> str | None:
    """What an error of JAX's says about a residual; None for other errors."""
    if isinstance(error, jax.errors.TracerBoolConversionError):
        return (
            "if, while, and, or, not and chained comparisons cannot depend on values "
            "at the points, which are known only while training: use jnp.where, &, | "
            "and ~"
        )
    if isinstance(error, jax.errors.JAXTypeError):
        return (
            "NumPy, math and float() cannot take values at the points, which are known "
            "only while training: use jax.numpy"
        )
    if isinstance(error, ValueError) and "values to unpack" in str(error):
        return (
            f"{error}: points have shape (n, dimension), a column for each coordinate: "
            "x, t = points.T"
        )
    if isinstance(error, TypeError) and "Tracer' object is not callable" in str(error):
        return (
            "fields and derivatives are arrays of values at the points and not "
            "functions: u, and not u(x, t)"
        )
    return None
