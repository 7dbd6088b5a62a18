"""Where points lie: boxes and balls, what is made of them, and their boundaries.

A domain is the set of points whose signed distance is not positive. The gradient of the
distance is the outward normal on the boundary.
"""

import abc
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Sampler = Callable[[jax.Array, int, Any], jax.Array]
"""Maps a key, a number and a dtype to random points of shape (number, dimension)."""
Predicate = Callable[[jax.Array], jax.Array]
"""Maps points of shape (n, dimension) to booleans of shape (n,)."""
Point = tuple[float, ...]

TRIALS = 100_000
"""Points used to estimate the share of candidates that is kept."""
STEP = 1e-4
"""How far from a boundary its two sides are tested, relative to the extent."""


class Domain(abc.ABC):
    """A set of points."""

    lower: Point
    """The lower bounds of a box around it, for each axis."""
    upper: Point
    """The upper bounds of that box."""

    @abc.abstractmethod
    def distance(self, points: Any) -> Any:
        """Negative inside, zero on the boundary, positive outside.

        Maps points of NumPy or JAX, shape (..., dimension), to shape (...).
        """

    @abc.abstractmethod
    def sample(self, key: jax.Array, number: int, dtype: Any) -> jax.Array:
        """A Sampler: points inside, uniform by volume."""

    @abc.abstractmethod
    def boundary(self, where: Predicate | None = None) -> Sampler:
        """The boundary, or the part of it where a predicate holds, uniform by area."""

    def contains(self, points: Any) -> Any:
        """Whether points of NumPy or JAX are inside or on the boundary, shape (...)."""
        return self.distance(points) <= 0

    def normal(self, points: jax.Array) -> jax.Array:
        """Unit vectors that point outwards, at points of the boundary."""
        return jax.vmap(jax.grad(self.distance))(points)


def kept(candidates: Sampler, keep: Predicate) -> Sampler:
    """Those of the candidates that a predicate keeps, as many as are asked for.

    Enough candidates are drawn at once that a shortage is six standard deviations away;
    in that case some points are returned twice.

    The sampler raises ValueError if none of many candidates is kept.
    """

    @jax.jit
    def share_of(key: jax.Array) -> jax.Array:
        return jnp.mean(keep(candidates(key, TRIALS, jnp.float32)))

    @functools.cache  # found by the first who draws, and not when a file is imported
    def share() -> float:
        with jax.ensure_compile_time_eval():
            found = float(share_of(jax.random.key(0)))
        if found == 0:
            raise ValueError("the domain, or this part of its boundary, has no points")
        return found

    def sample(key: jax.Array, number: int, dtype: Any) -> jax.Array:
        # The mean from which six standard deviations down there are enough.
        total = math.ceil((3 + math.sqrt(9 + number)) ** 2 / share())
        points = candidates(key, total, dtype)
        good = keep(points)
        first = jnp.argsort(~good)
        return points[first[jnp.arange(number) % jnp.maximum(good.sum(), 1)]]

    return sample


def _where(sampler: Sampler, where: Predicate | None) -> Sampler:
    return sampler if where is None else kept(sampler, where)


# --- Two simple domains ---


@dataclasses.dataclass(eq=False)
class Box(Domain):
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

    def distance(self, points: Any) -> Any:
        xp = points.__array_namespace__()
        sides = [
            xp.maximum(lower - points[..., axis], points[..., axis] - upper)
            for axis, (lower, upper) in enumerate(self.intervals())
        ]
        return functools.reduce(xp.maximum, sides)

    def sample(self, key: jax.Array, number: int, dtype: Any) -> jax.Array:
        lower, upper = jnp.asarray(self.lower, dtype), jnp.asarray(self.upper, dtype)
        unit = jax.random.uniform(key, (number, len(self.lower)), dtype)
        return lower + (upper - lower) * unit

    @property
    def area(self) -> float:
        """That of all faces; in one dimension their number."""
        extent = np.subtract(self.upper, self.lower)
        return 2 * sum(np.prod(np.delete(extent, axis)) for axis in range(len(extent)))

    def boundary(self, where: Predicate | None = None) -> Sampler:
        intervals = enumerate(self.intervals())
        faces = [(axis, cut) for axis, cuts in intervals for cut in cuts]
        return _where(self.faces(*faces), where)

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


@dataclasses.dataclass(eq=False)
class Ball(Domain):
    """A ball; in the plane, a disc. Rounding decides about points on its boundary."""

    center: Point
    radius: float

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"the radius must be positive, got {self.radius}")
        self.lower = tuple(x - self.radius for x in self.center)
        self.upper = tuple(x + self.radius for x in self.center)

    def distance(self, points: Any) -> Any:
        xp = points.__array_namespace__()
        vectors = points - xp.asarray(self.center, dtype=points.dtype)
        return xp.sqrt((vectors**2).sum(axis=-1)) - float(self.radius)

    def sample(self, key: jax.Array, number: int, dtype: Any) -> jax.Array:
        return self._at(jax.random.ball(key, len(self.center), 2, (number,), dtype))

    @property
    def area(self) -> float:
        """That of the sphere; of a disc, its circumference."""
        n = len(self.center)
        return 2 * math.pi ** (n / 2) / math.gamma(n / 2) * self.radius ** (n - 1)

    def boundary(self, where: Predicate | None = None) -> Sampler:
        def sphere(key: jax.Array, number: int, dtype: Any) -> jax.Array:
            vectors = jax.random.normal(key, (number, len(self.center)), dtype)
            return self._at(vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True))

        return _where(sphere, where)

    def _at(self, unit: jax.Array) -> jax.Array:
        """The points of this ball that correspond to those of the unit ball."""
        return jnp.asarray(self.center, unit.dtype) + float(self.radius) * unit


Disc = Ball
"""The name of a ball in the plane."""


# --- What is made of them ---


class Composite(Domain):
    """Boxes and balls, put together; their boundaries hold that of the whole."""

    parts: tuple[Domain, ...]

    def __init__(self, *parts: Domain):
        if not all(isinstance(part, Box | Ball | Composite) for part in parts):
            raise ValueError("it must be made of boxes and balls, or of such domains")
        if len({len(part.lower) for part in parts}) != 1:
            raise ValueError("it needs domains, all of the same dimension")
        self.parts = parts
        self.lower, self.upper = self.box_of_parts()
        self._inside = kept(Box(self.lower, self.upper).sample, self.contains)

    @abc.abstractmethod
    def box_of_parts(self) -> tuple[Point, Point]:
        """The lower and the upper bounds."""

    def sample(self, key: jax.Array, number: int, dtype: Any) -> jax.Array:
        return self._inside(key, number, dtype)

    def boundary(self, where: Predicate | None = None) -> Sampler:
        pieces = self.pieces()
        areas = [piece.area for piece in pieces]

        def candidates(key: jax.Array, number: int, dtype: Any) -> jax.Array:
            """A point, and the outward normal of the piece that it is on."""
            piece_key, *keys = jax.random.split(key, len(pieces) + 1)
            piece = _choose(piece_key, number, areas)
            found = []
            for one, one_key in zip(pieces, keys, strict=True):
                points = one.boundary()(one_key, number, dtype)
                found.append(jnp.concatenate([points, one.normal(points)], axis=-1))
            return jnp.stack(found)[piece, jnp.arange(number)]

        def keep(found: jax.Array) -> jax.Array:
            points, normals = jnp.split(found, 2, axis=-1)
            step = STEP * max(np.subtract(self.upper, self.lower)) * normals
            # A face between two boxes of a union has the domain on both sides.
            found = self.contains(points + step) != self.contains(points - step)
            return found if where is None else found & where(points)

        both = kept(candidates, keep)
        dimension = len(self.lower)
        return lambda key, number, dtype: both(key, number, dtype)[:, :dimension]

    def pieces(self) -> list[Box | Ball]:
        """The boxes and balls that it is made of."""
        found: list[Any] = []
        for part in self.parts:
            found += part.pieces() if isinstance(part, Composite) else [part]
        return found


class Union(Composite):
    """What is in one of the parts or more; an L is two boxes."""

    def box_of_parts(self) -> tuple[Point, Point]:
        lower = zip(*(part.lower for part in self.parts), strict=True)
        upper = zip(*(part.upper for part in self.parts), strict=True)
        return tuple(map(min, lower)), tuple(map(max, upper))

    def distance(self, points: Any) -> Any:
        xp = points.__array_namespace__()
        return functools.reduce(
            xp.minimum, [part.distance(points) for part in self.parts]
        )


class Difference(Composite):
    """What is in the first part and in none of the others: a plate with holes."""

    def box_of_parts(self) -> tuple[Point, Point]:
        return self.parts[0].lower, self.parts[0].upper

    def distance(self, points: Any) -> Any:
        xp = points.__array_namespace__()
        first, *others = [part.distance(points) for part in self.parts]
        return functools.reduce(xp.maximum, [first, *(-other for other in others)])


@dataclasses.dataclass(eq=False)
class OverTime(Domain):
    """A domain from one time to another; time is the last coordinate."""

    space: Domain
    start: float
    end: float

    def __post_init__(self) -> None:
        if not self.start < self.end:
            raise ValueError(f"start must be before end, got {self.start}, {self.end}")
        self.lower = *self.space.lower, self.start
        self.upper = *self.space.upper, self.end

    def distance(self, points: Any) -> Any:
        """That in space; the first and the last time have no part in the normals."""
        return self.space.distance(points[..., :-1])

    def contains(self, points: Any) -> Any:
        time = points[..., -1]
        is_during = (float(self.start) <= time) & (time <= float(self.end))
        return self.space.contains(points[..., :-1]) & is_during

    def sample(self, key: jax.Array, number: int, dtype: Any) -> jax.Array:
        return self._over_time(self.space.sample)(key, number, dtype)

    def boundary(self, where: Predicate | None = None) -> Sampler:
        """The boundary in space at all times, or a part of it."""
        return _where(self._over_time(self.space.boundary()), where)

    def at(self, time: float) -> Sampler:
        """The domain at one time, such as that of the initial values."""

        def sample(key: jax.Array, number: int, dtype: Any) -> jax.Array:
            points = self.space.sample(key, number, dtype)
            return jnp.concatenate([points, jnp.full((number, 1), time, dtype)], -1)

        return sample

    def _over_time(self, in_space: Sampler) -> Sampler:
        times = Box((self.start,), (self.end,))

        def sample(key: jax.Array, number: int, dtype: Any) -> jax.Array:
            keys = jax.random.split(key)
            parts = zip((in_space, times.sample), keys, strict=True)
            return jnp.concatenate([f(k, number, dtype) for f, k in parts], axis=-1)

        return sample


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
