"""Units in which the network's output and the trained coefficients are of order one.

A network with the usual initial weights returns values of order one. A temperature of
293 K would have to come from its last bias, which moves by the learning rate.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.problems.problem import Condition, Problem, names_taken

Scale = tuple[float, float]
"""An offset and a unit: the field is offset + unit times the network's output."""

POINTS = 1024
"""Random points at which the conditions are evaluated."""
CLOSE = 0.1
"""Values that differ by less from their middle, relative to it, are close together."""
EQUAL = 1e-3
"""Values that differ by less are equal, and the unit is their magnitude."""


def of_fields(problem: Problem) -> dict[str, Scale]:
    """The scales that a problem gives, and those of prescribed values for the rest."""
    with jax.ensure_compile_time_eval():
        found = {name: of_values(prescribed(problem, name)) for name in problem.fields}
    return found | dict(problem.scales)


def of_coefficients(problem: Problem) -> dict[str, float]:
    """The sizes of the initial values."""
    return {name: abs(float(x)) or 1.0 for name, x in problem.unknowns.items()}


def of_values(values: np.ndarray) -> Scale:
    """The largest magnitude is the unit; the middle of close values is their offset.

    Both are rounded, since the values are those of random points.
    """
    if not len(values):
        return 0.0, 1.0
    lowest, highest = float(values.min()), float(values.max())
    middle, half = (lowest + highest) / 2, (highest - lowest) / 2
    if half >= CLOSE * abs(middle):
        return 0.0, float(f"{max(-lowest, highest):.2g}") or 1.0
    unit = half if half > EQUAL * abs(middle) else abs(middle)
    return float(f"{middle:.4g}"), float(f"{unit:.2g}")


def prescribed(problem: Problem, field: str) -> np.ndarray:
    """The values that conditions ask of a field: where their residual is field - value.

    A residual that is zero for field = value need not be written like that; then its
    values are not seen here.
    """
    found, key = [], jax.random.key(0)
    for condition in problem.conditions:
        if field in names_taken(condition.residual):
            of_constants = functools.partial(_residuals, problem, condition, field)
            for zero, one in zip(*jax.jit(of_constants)(key), strict=True):
                zero, one = np.float64(zero), np.float64(one)
                if np.allclose(one - zero, 1.0, atol=1e-3 * (1 + np.abs(zero).max())):
                    found.append(np.ravel(-zero))
    return np.concatenate([np.zeros(0), *found])


def _residuals(
    problem: Problem, condition: Condition, field: str, key: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    """What a condition makes of a field of 0 and of 1, while all else is zero."""
    points = condition.where(key, POINTS, jnp.float32)
    quantities = {
        name: jnp.full(() if name in problem.unknowns else len(points), 0.0)
        for name in names_taken(condition.residual)
    }
    quantities |= {
        name: jnp.asarray(x, jnp.float32)
        for name, x in problem.unknowns.items()
        if name in quantities
    }

    def of_constant(value):
        of_field = {field: jnp.full(len(points), value)}
        return jax.tree.leaves(condition.residual(points, **quantities | of_field))

    return of_constant(0.0), of_constant(1.0)


def describe(scales: dict[str, Scale]) -> str | None:
    """The scales that differ from (0, 1), in one line; None if there are none."""
    found = [
        f"{name} = {f'{offset:g} + ' if offset else ''}{unit:g} × output"
        for name, (offset, unit) in scales.items()
        if (offset, unit) != (0.0, 1.0)
    ]
    return f"Units of the network: {', '.join(found)}." if found else None
