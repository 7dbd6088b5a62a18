"""What a problem consists of: equations on a domain, conditions, perhaps a solution."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from examples.pinn.domains import Box, Domain, Sampler
from examples.pinn.operators import Derivative, Operator, Sweep

Residual = Callable[..., Any]
"""residual(points, u=..., u_x=...): points of shape (n, dimension), then by their names
fields, operators and unknown coefficients. It returns what should be zero, shape (n,),
or a scalar such as a mean over all points minus its value, or several such arrays by
name, whose mean squares add up to one term of the loss."""

Target = Callable[[jax.Array], jax.Array] | float
"""A number, or a function of points of shape (n, dimension) to values of shape (n,)."""


OUTSIDE = 1e-6
"""How far from the domain's box a point is outside of it, relative to the extent."""


def names_taken(residual: Residual) -> tuple[str, ...]:
    """The quantities that a residual takes: its parameters after the points."""
    if hasattr(residual, "takes"):
        return residual.takes
    return tuple(inspect.signature(residual).parameters)[1:]


def _taking(names: Iterable[str], residual: Residual) -> Residual:
    """Says which quantities a function of any number of them takes."""
    residual.takes = tuple(names)  # type: ignore[attr-defined]
    return residual


def given(**targets: Target) -> Residual:
    """The residual of u = target, and the same for every field or operator named."""

    def residual(points, **quantities):
        return {
            name: quantities[name] - (target(points) if callable(target) else target)
            for name, target in targets.items()
        }

    return _taking(targets, residual)


def flux(domain: Domain, derivatives: Sequence[str], target: Target = 0.0) -> Residual:
    """The residual of ∂u/∂n = target on the boundary of a domain.

    Args:
      derivatives: the names of the first derivatives along the coordinates in space, in
        their order: `("u_x", "u_y")`.
    """

    def residual(points, **quantities):
        normals = domain.normal(points).T
        along = zip(normals, derivatives, strict=False)  # time, the last, has none
        total = sum(normal * quantities[name] for normal, name in along)
        return total - (target(points) if callable(target) else target)

    return _taking(derivatives, residual)


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
    face = box.face(axis, box.lower[axis])

    def pairs(key, number, dtype):
        below = face(key, number, dtype)
        return jnp.concatenate([below, below.at[:, axis].set(box.upper[axis])])

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
        return jnp.asarray(points, dtype)

    def residual(points, **quantities):
        return {
            name: quantity - jnp.asarray(values[name], points.dtype)
            for name, quantity in quantities.items()
        }

    kept = {"points": points, **values}
    return Condition(name, where, _taking(values, residual), weight, kept)


def read_values(path: Path | str, *coordinates: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, or the columns of a .csv file with a header.

    Of a table the columns of the `coordinates`, in this order, are the "points".
    """
    if Path(path).suffix != ".csv":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    table = pd.read_csv(path, skipinitialspace=True)
    names = tuple(table.columns)
    if not coordinates or not set(coordinates) < set(names):
        raise ValueError(
            f"{path} needs a header with the coordinates and values, separated by "
            "commas, and read_values the names of the coordinates, got "
            f"{coordinates} of {names}"
        )
    columns = {name: np.asarray(pd.to_numeric(table[name]), float) for name in names}
    points = np.stack([columns.pop(name) for name in coordinates], axis=-1)
    return {"points": points, **columns}


def _split(data: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Points, and values by name."""
    arrays = {name: np.asarray(data[name], np.float64) for name in data}
    points = arrays.pop("points", np.zeros(0))
    fit = arrays and all(x.shape == points.shape[:1] for x in arrays.values())
    if points.ndim != 2 or not points.size or not fit:
        raise ValueError(
            'data must hold "points" of shape (n, dimension) and values of shape (n,) '
            "by name, got "
            + ", ".join(f"{name} {np.shape(data[name])}" for name in data)
        )
    for name, values in {"points": points, **arrays}.items():
        if len(rows := np.argwhere(~np.isfinite(values))):
            row = rows[0][0]
            raise ValueError(f"{name} must be finite, got {values[row]} in row {row}")
    return points, arrays


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
    if there are several, NaN where it is not known; or reference data, as `measured`
    takes them; or None."""
    fields: tuple[str, ...] = ("u",)
    scales: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """An offset and a unit of fields: the network's output is (u - offset) / unit, and
    should be of order one. Of a field that is left out they come from the values that
    conditions prescribe."""
    unknowns: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Coefficients that are trained beside the network, and their initial values, which
    are also their units."""
    exact_unknowns: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What they should come to, if that is known."""
    split_residuals: bool = False
    """Whether each of the named residuals is a term of its own, at the price of a
    backward pass each."""

    @property
    def dimension(self) -> int:
        return len(self.coordinates)

    def grid(self) -> np.ndarray:
        """Points of a grid over the domain's box in float64, shape (n, dimension)."""
        bounds = self.domain.lower, self.domain.upper
        axes = map(np.linspace, *bounds, self.resolution)
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        return grid.reshape(-1, self.dimension)

    def reference(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Points, and the solution there by field; no field if it is not known."""
        if isinstance(self.exact, Mapping):
            return _split(self.exact)
        grid = self.grid()
        points = grid[np.asarray(self.domain.contains(grid))]
        if self.exact is None:
            return points, {}
        found = self.solution(points)
        known = np.all([np.isfinite(x) for x in found.values()], axis=0)
        return points[known], {name: x[known] for name, x in found.items()}

    def solution(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """The exact solution by field; there must be a function for it."""
        assert callable(self.exact)
        values = self.exact(points)
        by_field = values if isinstance(values, Mapping) else {self.fields[0]: values}
        return {name: np.asarray(x, np.float64) for name, x in by_field.items()}

    @property
    def parts(self) -> tuple[Condition, ...]:
        """The equation inside the domain, and the conditions."""
        inside = Condition("residual", self.domain.sample, self.residual)
        return inside, *self.conditions

    def doubts(self) -> list[str]:
        """What may be a mistake, in a sentence each."""
        found = []
        for field in self.fields:
            if not any(field in names_taken(part.residual) for part in self.parts):
                found.append(
                    f"Only derivatives of {field} are taken, so it is known up to a "
                    "constant. A condition on its mean would fix it."
                )
        for condition in self.conditions:
            points = condition.data.get("points", np.zeros((0, self.dimension)))
            extent = np.subtract(self.domain.upper, self.domain.lower)
            below = points < np.subtract(self.domain.lower, OUTSIDE * extent)
            above = points > np.add(self.domain.upper, OUTSIDE * extent)
            if outside := np.sum((below | above).any(axis=1)):
                found.append(
                    f"{outside} of {len(points)} points of {condition.name} are "
                    "outside the domain."
                )
        return found

    def check(self) -> None:
        """Raises ValueError for mistakes that training would not notice by itself."""
        names = [*self.fields, *self.operators, *self.unknowns]
        for things in (names, [part.name for part in self.parts]):
            for name in things:
                if things.count(name) > 1:
                    raise ValueError(f"{name} names two things")
        sweep = Sweep.of(self.operators, self.fields)
        sizes = {item.operator.dimension for _, item in sweep.derivatives}
        sizes |= {len(self.domain.lower), len(self.resolution)}
        if sizes != {self.dimension}:
            raise ValueError(
                f"there are {self.dimension} coordinates, and domain, resolution and "
                f"operators are for {', '.join(map(str, sorted(sizes)))}"
            )
        for name, (_, unit) in self.scales.items():
            if name not in self.fields or not 0 < unit < np.inf:
                raise ValueError(
                    "scales must have an offset and a positive unit for fields, "
                    f"got {self.scales[name]} for {name}"
                )
        for part in self.parts:
            self._check_part(part, names)
        if callable(self.exact):
            points = np.array([self.domain.lower, self.domain.upper, self.domain.upper])
            found = self.solution(points)
        else:
            points, found = self.reference()
        for name, values in found.items():
            if name not in self.fields or values.shape != (len(points),):
                raise ValueError(
                    "exact must have values of shape (n,) for fields, got "
                    f"{values.shape} for {name} and {len(points)} points"
                )

    def _check_part(self, part: Condition, names: Sequence[str]) -> None:
        """That a residual takes what there is, and has a value for each point."""
        taken = names_taken(part.residual)
        if not hasattr(part.residual, "takes"):
            first = next(iter(inspect.signature(part.residual).parameters), "nothing")
            if first in (*names, "nothing"):
                raise ValueError(
                    "the first argument of a residual is the points; that of "
                    f"{part.name} is {first}"
                )
        for name in taken:
            if name not in names:
                raise ValueError(
                    f"{part.name} takes {name}, which is none of {', '.join(names)}"
                )

        def zeros():
            points = part.where(jax.random.key(0), 7, jnp.float32)
            of_points = jnp.zeros(len(points))
            values = {
                x: 0 * of_points[0] if x in self.unknowns else of_points for x in taken
            }
            return points, part.residual(points, **values)

        points, found = jax.eval_shape(zeros)
        n = len(points)
        shapes = {x.shape for x in jax.tree.leaves(found)}
        # One value for each point; of a periodic pair, one for both; of an integral,
        # one for all.
        if not shapes or not shapes <= {(n,), (n // 2,), ()}:
            raise ValueError(
                f"{part.name} must have a value for each point, shape (n,), or one for "
                f"all, got {', '.join(map(str, shapes))} for {n} points"
            )
