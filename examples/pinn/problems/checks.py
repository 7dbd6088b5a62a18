"""Mistakes in a problem, named before anything is trained."""

import contextlib
import inspect
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.common.runs import RunError
from examples.pinn.domains import Sampler
from examples.pinn.operators import Sweep
from examples.pinn.problems.problem import (
    Condition,
    Problem,
    Residual,
    names_taken,
)

POINTS = 7
"""A number that no problem has for its dimension."""


def check(problem: Problem) -> None:
    """Raises RunError if a problem cannot be trained as it is written.

    Its functions are traced for their shapes and not run, but for `exact`.
    """
    _check_names(problem)
    _check_sizes(problem)
    _check_residual(problem, "the equation", problem.domain.sample, problem.residual)
    for condition in problem.conditions:
        where = f"the condition {condition.name}"
        _require(condition.weight > 0, f"the weight of {where} must be positive.")
        _check_residual(problem, where, condition.where, condition.residual)
        if condition.data:
            _check_near(problem, condition)
    _check_exact(problem)


@contextlib.contextmanager
def located(path: Path) -> Iterator[None]:
    """Makes one line of an exception in the user's file, with its own line number."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{path}: {error}") from None
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        if isinstance(error, SyntaxError):
            lines.append(error.lineno)
        place = f"{path}:{lines[-1]}" if lines else f"{path}"
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, FileNotFoundError):
            # Some loaders give a text of their own and no name.
            what = f"needs a file that is not there: {error.filename or error}"
        raise RunError(f"{place}: {what}") from error


def _require(holds: Any, message: str) -> None:
    if not holds:
        raise RunError(message)


def _check_names(problem: Problem) -> None:
    terms = ["residual", *(condition.name for condition in problem.conditions)]
    for name, count in Counter(terms).items():
        _require(count == 1, f"two terms are called {name}; each needs its own name.")
    _require(problem.fields, "fields must name one field or more.")
    for name, count in Counter(["points", *problem.known_names]).items():
        _require(
            count == 1,
            f"{name} names two things; fields, operators and unknowns need names of "
            'their own, and "points" is taken.',
        )
    for name in problem.exact_unknowns:
        _require(
            name in problem.unknowns,
            f"exact_unknowns has {name}, which is not among the unknowns.",
        )


def _check_sizes(problem: Problem) -> None:
    dimension = problem.dimension
    _require(
        len(problem.domain.lower) == dimension,
        f"the domain has {len(problem.domain.lower)} dimensions, and there are "
        f"{dimension} coordinates: {', '.join(problem.coordinates)}.",
    )
    _require(
        len(problem.resolution) == dimension and min(problem.resolution) > 1,
        f"resolution must be {dimension} numbers above 1, one for each coordinate, got "
        f"{problem.resolution}.",
    )
    for name, derivative in _sweep_of(problem).derivatives:
        _require(
            derivative.operator.dimension == dimension,
            f"the operator {name} is for {derivative.operator.dimension} dimensions, "
            f"and there are {dimension} coordinates: {', '.join(problem.coordinates)}.",
        )


def _sweep_of(problem: Problem) -> Sweep:
    try:
        return Sweep.of(problem.operators, problem.fields)
    except ValueError as error:
        raise RunError(f"{error}.") from None


def _check_residual(
    problem: Problem, where: str, sample: Sampler, residual: Residual
) -> None:
    """That it takes what there is, and has a value for each point."""
    _require(
        callable(residual),
        f"the residual of {where} must be a function, got {type(residual).__name__}.",
    )
    first = next(iter(inspect.signature(residual).parameters), "nothing")
    _require(
        first not in ("nothing", *problem.known_names),
        f"the first argument of a residual is the points; that of {where} is {first}.",
    )
    for taken in names_taken(residual):
        _require(
            taken in problem.known_names,
            f"the residual of {where} takes {taken}, which is no field, operator or "
            f"unknown: {', '.join(problem.known_names)}.",
        )

    key = jax.eval_shape(lambda: jax.random.key(0))
    points = jax.eval_shape(lambda key: sample(key, POINTS, jnp.float32), key)
    _require(
        points.ndim == 2 and points.shape[1] == problem.dimension,
        f"the points of {where} must have shape (n, {problem.dimension}), got "
        f"{points.shape}.",
    )
    value = jax.ShapeDtypeStruct(points.shape[:1], jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    quantities = {
        taken: number if taken in problem.unknowns else value
        for taken in names_taken(residual)
    }
    found = jax.eval_shape(lambda p, q: residual(p, **q), points, quantities)
    found = found if isinstance(found, Mapping) else {"": found}
    for part, zero in found.items():
        # One value for each point; of a periodic pair, one for both.
        shape = getattr(zero, "shape", None)
        fits = shape in (points.shape[:1], (points.shape[0] // 2,))
        _require(
            fits,
            f"the residual of {where}{part and f', {part},'} must have shape (n,), got "
            f"{_shape(shape, points.shape[0])}.",
        )


def _shape(shape: tuple[int, ...] | None, number: int) -> str:
    if shape is None:
        return "no array"
    return str(tuple("n" if n == number else n for n in shape)).replace("'", "")


def _check_near(problem: Problem, condition: Condition) -> None:
    """That not all measured points are outside the box, by more than by rounding."""
    lower, upper = np.array([problem.domain.lower, problem.domain.upper], float)
    margin = 1e-3 * (upper - lower)
    points = condition.data["points"]
    far = ((points < lower - margin) | (points > upper + margin)).any(axis=1)
    _require(not far.all(), f"all points of {condition.name} are outside the domain.")


def _check_exact(problem: Problem) -> None:
    """The solution, at the corners of the domain's box."""
    if callable(problem.exact):
        corners = np.array([problem.domain.lower, problem.domain.upper], float)
        found = problem.solution(np.resize(corners, (POINTS, problem.dimension)))
        for name, values in found.items():
            _require(
                values.shape == (POINTS,),
                f"exact must map points of shape (n, {problem.dimension}) to values of "
                f"shape (n,), got {_shape(values.shape, POINTS)} for {name}.",
            )
    else:
        points, found = problem.reference()
        _require(
            points.shape[1] == problem.dimension,
            f"the points of exact must have shape (n, {problem.dimension}), got "
            f"{points.shape}.",
        )
    for name in found:
        _require(
            name in problem.fields,
            f"exact has {name}, which is not among the fields: "
            f"{', '.join(problem.fields)}.",
        )
