"""What a problem consists of: equations on a domain, conditions, perhaps a solution."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box, Domain, Sampler
from examples.pinn.operators import Derivative, Operator

Residual = Callable[..., Any]
"""residual(points, u=..., u_x=...): points of shape (n, dimension), then by their names
fields, operators and unknown coefficients. It returns what should be zero, shape (n,),
or several such arrays by name, whose mean squares add up to one term of the loss."""

Target = Callable[[jax.Array], jax.Array] | float
"""A number, or a function of points of shape (n, dimension) to values of shape (n,)."""


def _taking(names: Iterable[str], residual: Residual) -> Residual:
    """Says by a signature which quantities a function of any number of them takes."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("points", *names)]
    residual.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return residual


def given(**targets: Target) -> Residual:
    """The residual of u = target, and the same for every field or operator named."""

    def residual(points, **quantities):
        return {
            name: quantities[name] - _values(name, target, points)
            for name, target in targets.items()
        }

    return _taking(targets, residual)


ZERO = given(u=0.0)


@dataclasses.dataclass(frozen=True)
class Condition:
    """Equations on a part of the boundary or the domain; one term of the loss."""

    name: str
    where: Sampler
    """Draws the points: `domain.boundary()`, `domain.face(axis, coordinate)`, ..."""
    residual: Residual = ZERO
    """As that of a problem; `given(u=..., u_t=...)` for prescribed values."""
    weight: float = 1.0
    """Its importance beside the other terms, once they are balanced."""
    data: Mapping[str, np.ndarray] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )
    """What was measured, if it is `measured`: "points" and values by name."""


def periodic(name: str, box: Box, axis: int, *quantities: str) -> Condition:
    """The quantities have the same values on both faces of a box across an axis."""
    box.check_axis(axis)

    def pairs(key, number, dtype):
        below = box.face(axis, box.lower[axis])(key, number, dtype)
        above = below.at[:, axis].set(box.upper[axis])
        return jnp.concatenate([below, above])

    def residual(points, **values):
        half = len(points) // 2
        return {name: x[:half] - x[half:] for name, x in values.items()}

    return Condition(name, pairs, _taking(quantities or ("u",), residual))


def measured(name: str, data: Mapping[str, Any], weight: float = 1.0) -> Condition:
    """Values measured at points: all of them, at every step.

    Args:
      data: "points" of shape (n, dimension), and values of shape (n,) by the names of
        fields or operators, as `read_values` gives them.
    """
    points, values = _split(data)

    def where(key, number, dtype):
        del key, number
        return jnp.asarray(points, dtype)

    def residual(points, **quantities):
        return {
            name: quantity - jnp.asarray(values[name], points.dtype)
            for name, quantity in quantities.items()
        }

    kept = {"points": points, **values}
    return Condition(name, where, _taking(values, residual), weight, kept)


def read_values(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Partial differential equations, to be solved by a network of the coordinates."""

    name: str
    equation: str
    """The equation as text, for the title of a figure."""
    coordinates: tuple[str, ...]
    domain: Domain
    operators: Mapping[str, Operator | Derivative]
    """The derivatives that residuals take, by name: `{"u_x": d(1, 0)}`; if there are
    several fields `{"u_x": d(1, 0)("u")}`."""
    residual: Residual
    """Zero inside the domain, where the fields solve the equations."""
    conditions: tuple[Condition, ...]
    resolution: tuple[int, ...]
    """Points along each axis of the grid for errors and figures."""
    exact: Callable[[np.ndarray], Any] | Mapping[str, Any] | None = None
    """The solution in float64, points of shape (n, dimension) to values (n,), by field
    if there are several; or reference data, as `measured` takes them; or None."""
    fields: tuple[str, ...] = ("u",)
    unknowns: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Coefficients that are trained beside the network, and their initial values."""
    exact_unknowns: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What they should come to, if that is known."""
    split_residuals: bool = False
    """Whether each of the named residuals is a term of its own, at the price of a
    backward pass each."""

    @property
    def dimension(self) -> int:
        return len(self.coordinates)

    @property
    def known_names(self) -> tuple[str, ...]:
        """What a residual may take."""
        return (*self.fields, *self.operators, *self.unknowns)

    def grid(self) -> np.ndarray:
        """Points of a grid over the domain's box in float64, shape (n, dimension)."""
        bounds = self.domain.lower, self.domain.upper
        axes = map(np.linspace, *bounds, self.resolution)
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        return grid.reshape(-1, self.dimension)

    def measured_outside(self) -> dict[str, np.ndarray]:
        """Of each measured condition, which of its points are outside the domain."""
        return {
            condition.name: ~np.asarray(self.domain.contains(condition.data["points"]))
            for condition in self.conditions
            if condition.data
        }

    def reference(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Points, and the solution there by field; no field if it is not known."""
        if isinstance(self.exact, Mapping):
            return _split(self.exact)
        grid = self.grid()
        points = grid[np.asarray(self.domain.contains(grid))]
        return points, {} if self.exact is None else self.solution(points)

    def solution(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """The exact solution by field; there must be a function for it."""
        assert callable(self.exact)
        values = self.exact(points)
        by_field = values if isinstance(values, Mapping) else {self.fields[0]: values}
        return {name: np.asarray(x, np.float64) for name, x in by_field.items()}


def names_taken(residual: Residual) -> tuple[str, ...]:
    """The quantities that a residual takes: its parameters after the points."""
    _, *names = inspect.signature(residual).parameters
    return tuple(names)


def _values(name: str, target: Target, points: jax.Array) -> Any:
    if not callable(target):
        return target
    values = target(points)
    if jnp.shape(values) != points.shape[:1]:
        shape = str(jnp.shape(values)).replace(str(len(points)), "n")
        raise ValueError(
            f"the target of {name} must map points of shape (n, {points.shape[1]}) to "
            f"values of shape (n,), got {shape}"
        )
    return values


def _split(data: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Points, and values by name."""
    arrays = {name: np.asarray(data[name], np.float64) for name in data}
    points = arrays.pop("points", None)
    if points is None or points.ndim != 2 or not arrays:
        raise ValueError(
            'data must hold "points" of shape (n, dimension) and values by name, got '
            + ", ".join(f"{name} {np.shape(data[name])}" for name in data)
        )
    if not len(points):
        raise ValueError("data hold no points")
    _check_finite("points", np.isfinite(points).all(axis=1))
    for name, values in arrays.items():
        if values.shape != points.shape[:1]:
            raise ValueError(
                f"data must hold a value of {name} for each of {len(points)} points, "
                f"got shape {values.shape}"
            )
        _check_finite(f"values of {name}", np.isfinite(values))
    return points, arrays


def _check_finite(what: str, finite: Any) -> None:
    if not finite.all():
        raise ValueError(
            f"data must be finite: {np.sum(~finite)} of {len(finite)} {what} are not"
        )
