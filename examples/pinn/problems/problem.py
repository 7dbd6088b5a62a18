"""What a problem consists of: an equation on a box, conditions, and its solution."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.operators import Operator


@dataclasses.dataclass(frozen=True)
class Condition:
    """u = target on a part of the boundary: a boundary or an initial condition.

    The part consists of `faces`, pairs of an axis and the coordinate at which the box
    is cut, and is sampled uniformly by area.
    """

    name: str
    faces: tuple[tuple[int, float], ...]
    target: Callable[[jax.Array], jax.Array]
    """Maps points of shape (n, dimension) to the values of u, shape (n,)."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A partial differential equation, to be solved by a network u(x).

    `residual` is the equation, written in the names of `operators`: it takes the
    points, shape (n, dimension), then u and the derivatives by name, shape (n,).
    """

    name: str
    equation: str
    coordinates: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    operators: Mapping[str, Operator]
    residual: Callable[..., jax.Array]
    conditions: tuple[Condition, ...]
    exact: Callable[[np.ndarray], np.ndarray]
    """The solution in float64: points (..., dimension) to values (...)."""
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
        """Points of the evaluation grid in float64: (*resolution, dimension)."""
        axes = [
            np.linspace(low, high, n)
            for low, high, n in zip(
                self.lower, self.upper, self.resolution, strict=True
            )
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def box_faces(
    lower: tuple[float, ...], upper: tuple[float, ...]
) -> tuple[tuple[int, float], ...]:
    """All faces of a box."""
    return tuple(
        (axis, cut)
        for axis, cuts in enumerate(zip(lower, upper, strict=True))
        for cut in cuts
    )


def zero(points: jax.Array) -> jax.Array:
    """The target u = 0."""
    return jnp.zeros(points.shape[:-1], points.dtype)
