"""Where points lie: boxes, their faces and unions, discs, and segments."""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Sampler = Callable[[jax.Array, int, Any], jax.Array]
"""Maps a key, a number and a dtype to random points of shape (number, dimension)."""
Point = tuple[float, ...]


class Domain(Protocol):
    """A set of points, and the smallest box around it."""

    @property
    def lower(self) -> Point: ...
    @property
    def upper(self) -> Point: ...
    def sample(self, key: jax.Array, number: int, dtype: Any) -> jax.Array:
        """A Sampler: points inside, uniform by volume."""

    def contains(self, points: Any) -> Any:
        """Whether points of NumPy or JAX are inside or on the boundary, shape (...)."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A box with its sides along the axes: in one dimension, an interval."""

    lower: Point
    upper: Point

    def __post_init__(self) -> None:
        same_length = len(self.lower) == len(self.upper)
        if not (same_length and all(map(operator.lt, self.lower, self.upper))):
            raise ValueError(f"a box needs lower < upper on each axis, got {self}")

    def intervals(self) -> list[tuple[float, float]]:
        """The lower and the upper bound of each axis."""
        # As Python's floats, which take the dtype of what they are compared with.
        lower, upper = map(float, self.lower), map(float, self.upper)
        return list(zip(lower, upper, strict=True))

    def sample(self, key: jax.Array, number: int, dtype: Any) -> jax.Array:
        lower, upper = jnp.asarray(self.lower, dtype), jnp.asarray(self.upper, dtype)
        unit = jax.random.uniform(key, (number, len(self.lower)), dtype)
        return lower + (upper - lower) * unit

    def contains(self, points: Any) -> Any:
        inside = [
            (lower <= points[..., axis]) & (points[..., axis] <= upper)
            for axis, (lower, upper) in enumerate(self.intervals())
        ]
        return functools.reduce(operator.and_, inside)

    def boundary(self) -> Sampler:
        """All faces, uniform by area."""
        intervals = enumerate(self.intervals())
        return self.faces(*((axis, cut) for axis, cuts in intervals for cut in cuts))

    def face(self, axis: int, coordinate: float) -> Sampler:
        """Where the box is cut at a coordinate of an axis; inner cuts are allowed."""
        return self.faces((axis, coordinate))

    def faces(self, *faces: tuple[int, float]) -> Sampler:
        """Some faces, as pairs of an axis and a coordinate, uniform by area."""
        bounds = dict(enumerate(self.intervals()))
        for axis, cut in faces:
            lower, upper = bounds.get(axis, (1.0, 0.0))
            if not lower <= cut <= upper:
                raise ValueError(f"{self} has no face at {cut} of axis {axis}")
        extent = np.subtract(self.upper, self.lower)
        areas = [np.prod(np.delete(extent, axis)) for axis, _ in faces]

        def sample(key: jax.Array, number: int, dtype: Any) -> jax.Array:
            inside_key, face_key = jax.random.split(key)
            points = self.sample(inside_key, number, dtype)
            face = _choose(face_key, number, areas)
            axes = jnp.asarray([axis for axis, _ in faces])[face]
            cuts = jnp.asarray([cut for _, cut in faces], dtype)[face]
            is_cut = jnp.arange(len(self.lower)) == axes[:, None]
            return jnp.where(is_cut, cuts[:, None], points)

        return sample


@dataclasses.dataclass(frozen=True)
class Disc:
    """A disc in the plane; rounding decides about points on its circle."""

    center: tuple[float, float]
    radius: float

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"the radius must be positive, got {self.radius}")

    @property
    def lower(self) -> Point:
        return tuple(x - self.radius for x in self.center)

    @property
    def upper(self) -> Point:
        return tuple(x + self.radius for x in self.center)

    def sample(self, key: jax.Array, number: int, dtype: Any) -> jax.Array:
        circle_key, radius_key = jax.random.split(key)
        # The square root, as the area grows with the square of the radius.
        radius = jnp.sqrt(jax.random.uniform(radius_key, (number, 1), dtype))
        return self._at(radius * _directions(circle_key, number, dtype))

    def boundary(self) -> Sampler:
        """The circle, uniform by angle."""
        return lambda key, number, dtype: self._at(_directions(key, number, dtype))

    def _at(self, unit: jax.Array) -> jax.Array:
        """The points of this disc that correspond to those of the unit disc."""
        return jnp.asarray(self.center, unit.dtype) + float(self.radius) * unit

    def contains(self, points: Any) -> Any:
        (x, y), radius = map(float, self.center), float(self.radius)
        return (points[..., 0] - x) ** 2 + (points[..., 1] - y) ** 2 <= radius**2


@dataclasses.dataclass(frozen=True, init=False)
class Union:
    """Boxes that do not overlap; an L is two of them."""

    boxes: tuple[Box, ...]

    def __init__(self, *boxes: Box):
        if len({len(box.lower) for box in boxes}) != 1:
            raise ValueError("a union needs boxes, all of the same dimension")
        for one, other in itertools.combinations(boxes, 2):
            lower = np.maximum(one.lower, other.lower)
            upper = np.minimum(one.upper, other.upper)
            if (lower < upper).all():
                raise ValueError(f"{one} and {other} overlap")
        object.__setattr__(self, "boxes", boxes)

    @property
    def lower(self) -> Point:
        return tuple(map(min, zip(*(box.lower for box in self.boxes), strict=True)))

    @property
    def upper(self) -> Point:
        return tuple(map(max, zip(*(box.upper for box in self.boxes), strict=True)))

    def sample(self, key: jax.Array, number: int, dtype: Any) -> jax.Array:
        inside_key, box_key = jax.random.split(key)
        extents = [np.subtract(box.upper, box.lower) for box in self.boxes]
        box = _choose(box_key, number, [np.prod(extent) for extent in extents])
        lower = jnp.asarray([box.lower for box in self.boxes], dtype)[box]
        extent = jnp.asarray(extents, dtype)[box]
        return lower + extent * jax.random.uniform(inside_key, lower.shape, dtype)

    def contains(self, points: Any) -> Any:
        inside = [box.contains(points) for box in self.boxes]
        return functools.reduce(operator.or_, inside)


def segments(*ends: tuple[Point, Point]) -> Sampler:
    """Straight lines from a start to an end, such as a polygon's, by length."""
    starts, vectors = [a for a, _ in ends], [np.subtract(b, a) for a, b in ends]
    lengths = [np.linalg.norm(vector) for vector in vectors]

    def sample(key: jax.Array, number: int, dtype: Any) -> jax.Array:
        inside_key, segment_key = jax.random.split(key)
        segment = _choose(segment_key, number, lengths)
        start, vector = (jnp.asarray(x, dtype)[segment] for x in (starts, vectors))
        return start + vector * jax.random.uniform(inside_key, (number, 1), dtype)

    return sample


def _choose(key: jax.Array, number: int, sizes: Sequence[Any]) -> jax.Array:
    """Indices of parts of a domain, as often as the sizes of the parts say."""
    shares = jnp.asarray(sizes / np.sum(sizes))
    return jax.random.choice(key, len(sizes), (number,), p=shares)


def _directions(key: jax.Array, number: int, dtype: Any) -> jax.Array:
    """Unit vectors in the plane, uniform by angle."""
    angle = 2 * jnp.pi * jax.random.uniform(key, (number,), dtype)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
