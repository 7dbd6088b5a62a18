"""Units in which the network's output and the trained coefficients are of order one.

A network with the usual initial weights returns values of order one. A temperature of
293 K would have to come from its last bias, which moves by the learning rate.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.problems.problem import Problem, names_taken

Scale = tuple[float, float]
"""An offset and a unit: the field is offset + unit times the network's output."""

POINTS = 1024
"""Random points at which the conditions are evaluated."""
CLOSE = 0.1
"""Values that differ by less from their middle, relative to it, are close together."""
EQUAL = 1e-3
"""Values that differ by less are equal, and the unit is their magnitude."""


def of_fields(problem: Problem) -> tuple[dict[str, Scale], list[str]]:
    """The scales that a problem gives, and those of prescribed values for the rest.

    Returns:
      The scales; and the fields for which there is neither, whose unit is 1.
    """
    with jax.ensure_compile_time_eval():
        values = prescribed(problem)
    scales = {name: of_values(x) for name, x in values.items()} | dict(problem.scales)
    return scales, [
        name for name, x in values.items() if not len(x) and name not in problem.scales
    ]


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


def prescribed(problem: Problem) -> dict[str, np.ndarray]:
    """The values that conditions ask of each field: where a residual is field - value.

    A residual that is zero for field = value need not be written like that; then its
    values are not seen here.
    """
    of_constants = jax.jit(functools.partial(_of_constants, problem))
    residuals, found = of_constants(jax.random.key(0)), {}
    for field in problem.fields:
        values = [np.zeros(0)]
        for zero, one in residuals[field]:
            zero, one = np.float64(zero), np.float64(one)
            if np.allclose(one - zero, 1.0, atol=1e-3 * (1 + np.abs(zero).max())):
                values.append(np.ravel(-zero))
        found[field] = np.concatenate(values)
    return found


def _of_constants(
    problem: Problem, key: jax.Array
) -> dict[str, list[tuple[jax.Array, jax.Array]]]:
    """What conditions make of each field being 0 and 1, while all else is zero."""
    found: dict[str, list[tuple[jax.Array, jax.Array]]]
    found = {name: [] for name in problem.fields}
    for condition in problem.conditions:
        points = condition.where(key, POINTS, jnp.float32)
        zero = jnp.zeros(len(points))
        quantities = {
            name: jnp.float32(problem.unknowns.get(name, zero))
            for name in names_taken(condition.residual)
        }
        residual = functools.partial(condition.residual, points)
        at_zero = jax.tree.leaves(residual(**quantities))
        for field in found:
            if field in quantities:
                at_one = jax.tree.leaves(residual(**quantities | {field: zero + 1}))
                found[field] += zip(at_zero, at_one, strict=True)
    return found


def describe(scales: dict[str, Scale], unknown: list[str]) -> str | None:
    """The scales that differ from (0, 1), and the fields of an unknown one.

    None if there are none of either.
    """
    found = [
        f"{name} = {f'{offset:g} + ' if offset else ''}{unit:g} × output"
        for name, (offset, unit) in scales.items()
        if (offset, unit) != (0.0, 1.0)
    ]
    found += [
        f"{name} = output, as nothing prescribes it (see scales)" for name in unknown
    ]
    return f"Units of the network: {', '.join(found)}." if found else None
