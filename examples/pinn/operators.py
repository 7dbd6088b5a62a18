r"""Derivatives of a network along given directions, in one forward sweep.

A differential operator of up to second order is a sum over directions v,

    D u = Σ_v  a_v ∂_v u  +  Σ_v  b_v ∂_v² u,

which covers u_x, u_t, u_xx, the Laplacian and, by polarisation, mixed derivatives.
Beside the value u of a point the sweep carries its first derivatives along all
directions that occur, and one stream for each second-order sum. A linear layer maps all
streams alike; an activation φ maps

    u     ->  φ(u)
    ∂_v u ->  φ'(u) ∂_v u
    S     ->  φ'(u) S + φ''(u) Σ_v b_v (∂_v u)²

(Taylor mode; for the Laplacian the forward Laplacian of Li et al., 2023). The sum is
taken before the layers and not after them, so a Laplacian in d dimensions costs d + 2
streams, where nested forward mode takes 4 d.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Direction = tuple[float, ...]
Activation = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Operator:
    """A linear differential operator: weights of ∂_v and ∂_v² for directions v."""

    first: tuple[tuple[Direction, float], ...] = ()
    second: tuple[tuple[Direction, float], ...] = ()

    def __add__(self, other: "Operator") -> "Operator":
        return Operator(self.first + other.first, self.second + other.second)

    def __rmul__(self, factor: float) -> "Operator":
        return Operator(
            tuple((v, factor * weight) for v, weight in self.first),
            tuple((v, factor * weight) for v, weight in self.second),
        )

    def __sub__(self, other: "Operator") -> "Operator":
        return self + (-1.0) * other


def axis(index: int, dimension: int) -> Direction:
    """The unit vector of a coordinate."""
    return tuple(float(i == index) for i in range(dimension))


def d(*direction: float) -> Operator:
    """∂_v, the first derivative along a direction v, one number for each coordinate."""
    return Operator(first=((tuple(map(float, direction)), 1.0),))


def dd(*direction: float) -> Operator:
    """∂_v², the second derivative along a direction v."""
    return Operator(second=((tuple(map(float, direction)), 1.0),))


def laplacian(dimension: int) -> Operator:
    """Δ, the sum of all pure second derivatives."""
    return Operator(second=tuple((axis(i, dimension), 1.0) for i in range(dimension)))


class Jet(NamedTuple):
    """A batch of values with its derivatives: arrays of shape (n, features).

    Each stream is an array by itself. As slices of one array they would be a single
    matrix product, but the gradient of such slices cannot be fused: it is padded and
    summed, which costs more than the larger product saves.
    """

    value: jax.Array
    first: tuple[jax.Array, ...]
    """∂_v for each direction."""
    second: tuple[jax.Array, ...]
    """Σ_v b_v ∂_v² for each sum."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What has to be carried through the layers for some operators."""

    operators: tuple[tuple[str, Operator], ...]

    @classmethod
    def of(cls, operators: Mapping[str, Operator]) -> "Sweep":
        return cls(tuple(operators.items()))

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Each direction once, in order of appearance."""
        seen = [v for _, op in self.operators for v, _ in op.first + op.second]
        return tuple(dict.fromkeys(seen))

    @property
    def sums(self) -> tuple[tuple[float, ...], ...]:
        """The weights b_v of each second-order sum, for each direction."""
        return tuple(
            dict.fromkeys(
                self._weights(op.second) for _, op in self.operators if op.second
            )
        )

    def start(self, points: jax.Array) -> Jet:
        """The jet of the coordinates themselves, at points of shape (n, dimension)."""
        return Jet(
            points,
            tuple(
                jnp.broadcast_to(jnp.asarray(v, points.dtype), points.shape)
                for v in self.directions
            ),
            tuple(jnp.zeros_like(points) for _ in self.sums),
        )

    def read(self, jet: Jet) -> dict[str, jax.Array]:
        """The derivatives by the names of their operators, and the value as "u"."""
        result = {"u": jet.value}
        for name, op in self.operators:
            term: jax.Array | float = 0.0
            for weight, stream in zip(self._weights(op.first), jet.first, strict=True):
                if weight:
                    term = term + weight * stream
            if op.second:
                term = term + jet.second[self.sums.index(self._weights(op.second))]
            result[name] = jnp.asarray(term)
        return result

    def _weights(self, terms: tuple[tuple[Direction, float], ...]) -> tuple[float, ...]:
        return tuple(
            sum(weight for v, weight in terms if v == direction)
            for direction in self.directions
        )


NOTHING = Sweep(())
"""No derivatives: only values pass through the layers."""


def linear(jet: Jet, kernel: jax.Array, bias: jax.Array | float = 0.0) -> Jet:
    """The affine map x @ kernel + bias of a jet; a constant has no derivatives."""
    return Jet(
        jet.value @ kernel + bias,
        tuple(stream @ kernel for stream in jet.first),
        tuple(stream @ kernel for stream in jet.second),
    )


def activate(phi: Activation, jet: Jet, sums: tuple[tuple[float, ...], ...]) -> Jet:
    """An activation of a jet, entry by entry."""
    if not jet.first:
        return Jet(phi(jet.value), (), ())
    value, slope, curvature = _derivatives(phi, jet.value)

    def squares(weights: tuple[float, ...]) -> jax.Array:
        terms = zip(weights, jet.first, strict=True)
        return jnp.asarray(sum(b * (v * v) for b, v in terms if b))

    return Jet(
        value,
        tuple(slope * v for v in jet.first),
        tuple(
            slope * stream + curvature * squares(weights)
            for stream, weights in zip(jet.second, sums, strict=True)
        ),
    )


def _derivatives(phi: Activation, x: jax.Array):
    """φ, φ' and φ'' at each entry."""
    one = jnp.ones_like(x)

    def with_slope(x):
        return jax.jvp(phi, (x,), (one,))

    (value, slope), (_, curvature) = jax.jvp(with_slope, (x,), (one,))
    return value, slope, curvature


def in_blocks(
    f: Callable[[jax.Array], Any], points: jax.Array, size: int | None
) -> Any:
    """f(points), for an f that treats each point by itself, in blocks of `size` points.

    The gradient of a deep network keeps every layer's streams of all points at once; in
    blocks it keeps those of one block, and computes each block twice. All points at
    once are faster where memory allows: size None.
    """
    if size is None or len(points) <= size:
        return f(points)
    whole = len(points) // size * size
    blocks = points[:whole].reshape(-1, size, points.shape[-1])
    result = jax.lax.map(jax.checkpoint(f, prevent_cse=False), blocks)
    result = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), result)
    if whole == len(points):
        return result
    rest = f(points[whole:])
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), result, rest)


def nested_derivatives(
    u: Callable[[jax.Array], jax.Array],
    points: jax.Array,
    operators: Mapping[str, Operator],
) -> dict[str, jax.Array]:
    """The same for any function of one point, by nested forward mode.

    Slower; for networks that are not written as jets, and to test against.

    Args:
      u: maps a point of shape (dimension,) to an array.
      points: shape (n, dimension).
      operators: what to compute, by name.

    Returns:
      "u" and each operator's value: arrays with a leading axis of n.
    """

    def first(f, v):
        return lambda x: jax.jvp(f, (x,), (jnp.asarray(v, x.dtype),))[1]

    def apply(operator):
        def value(x):
            terms = [w * first(u, v)(x) for v, w in operator.first]
            terms += [w * first(first(u, v), v)(x) for v, w in operator.second]
            return sum(terms)

        return value

    result = {"u": jax.vmap(u)(points)}
    for name, operator in operators.items():
        result[name] = jax.vmap(apply(operator))(points)
    return result
