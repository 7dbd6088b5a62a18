"""What a problem consists of: an equation on a box, conditions, and its solution."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.operators import Operator

Faces = tuple[tuple[int, float], ...]
"""Pairs of an axis and the coordinate at which the box is cut."""


def zero(points: jax.Array) -> jax.Array:
    """The target u = 0."""
    return jnp.zeros(points.shape[:-1], points.dtype)


@dataclasses.dataclass(frozen=True)
class Condition:
    """u = target on a part of the boundary: a boundary or an initial condition."""

    name: str
    faces: Faces
    """The part; it is sampled uniformly by area."""
    target: Callable[[jax.Array], jax.Array] = zero
    """Maps points of shape (n, dimension) to the values of u, shape (n,)."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A partial differential equation on a box, to be solved by a network u(x)."""

    name: str
    equation: str
    """The equation as text, for the title of a figure."""
    coordinates: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    operators: Mapping[str, Operator]
    """The derivatives that the residual takes, by name."""
    residual: Callable[..., jax.Array]
    """residual(points, u=..., **derivatives): points of shape (n, dimension), then u
    and each derivative by name, shape (n,); zero where u solves the equation."""
    conditions: tuple[Condition, ...]
    exact: Callable[[np.ndarray], np.ndarray]
    """The solution in float64: points of shape (n, dimension) to values (n,)."""
    resolution: tuple[int, ...]
    """Points along each axis of the grid on which errors are measured."""

    @property
    def dimension(self) -> int:
        return len(self.coordinates)

    def sample_interior(self, key: jax.Array, number: int, dtype) -> jax.Array:
        """Uniform collocation points, shape (number, dimension)."""
        lower, upper = jnp.asarray(self.lower, dtype), jnp.asarray(self.upper, dtype)
        unit = jax.random.uniform(key, (number, self.dimension), dtype)
        return lower + (upper - lower) * unit

    def sample_condition(
        self, condition: Condition, key: jax.Array, number: int, dtype
    ) -> jax.Array:
        """Points on the faces of a condition, shape (number, dimension)."""
        inside_key, face_key = jax.random.split(key)
        points = self.sample_interior(inside_key, number, dtype)
        extent = np.subtract(self.upper, self.lower)
        areas = [np.prod(np.delete(extent, axis)) for axis, _ in condition.faces]
        face = jax.random.choice(
            face_key, len(areas), (number,), p=jnp.asarray(areas / np.sum(areas))
        )
        axes = jnp.asarray([axis for axis, _ in condition.faces])[face]
        cuts = jnp.asarray([cut for _, cut in condition.faces], dtype)[face]
        is_cut = jnp.arange(self.dimension) == axes[:, None]
        return jnp.where(is_cut, cuts[:, None], points)

    def grid(self) -> np.ndarray:
        """Points of the evaluation grid in float64, shape (n, dimension)."""
        axes = map(np.linspace, self.lower, self.upper, self.resolution)
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        return grid.reshape(-1, self.dimension)


def box_faces(lower: tuple[float, ...], upper: tuple[float, ...]) -> Faces:
    """All faces of a box."""
    bounds = enumerate(zip(lower, upper, strict=True))
    return tuple((axis, cut) for axis, cuts in bounds for cut in cuts)
