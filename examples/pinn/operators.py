r"""Derivatives of a network in one forward sweep.

A differential operator of up to second order is

    D u = Σ_i a_i ∂_i u  +  Σ_ij b_ij ∂_i ∂_j u,

which covers u_x, u_t, u_xx, u_xt and the Laplacian. Beside the value u of a point, the
sweep carries its first derivatives along the coordinates, and one stream S for each
second-order sum. A linear layer maps all streams in the same way. An activation φ maps

    u     ->  φ(u)
    ∂_i u ->  φ'(u) ∂_i u
    S     ->  φ'(u) S + φ''(u) Σ_ij b_ij ∂_i u ∂_j u

(Taylor mode; for the Laplacian, the forward Laplacian of Li et al., 2023). The sum is
taken before the layers and not after them, so a Laplacian in d dimensions costs d + 2
streams, and nested forward mode 4 d.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Activation = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A linear differential operator: the coefficients of ∂_i and of ∂_i ∂_j."""

    first: np.ndarray
    second: np.ndarray

    def __add__(self, other: "Operator") -> "Operator":
        return Operator(self.first + other.first, self.second + other.second)

    def __sub__(self, other: "Operator") -> "Operator":
        return self + (-1.0) * other

    def __rmul__(self, factor: float) -> "Operator":
        return Operator(factor * self.first, factor * self.second)

    def second_terms(self) -> Iterator[tuple[int, int, float]]:
        """Those (i, j, b_ij) that are not zero."""
        for i, j in np.argwhere(self.second):
            yield int(i), int(j), float(self.second[i, j])


def d(*direction: float) -> Operator:
    """The first derivative along a direction; of u(x, t), u_x is along (1, 0)."""
    n = len(direction)
    return Operator(np.array(direction, float), np.zeros((n, n)))


def dd(*direction: float) -> Operator:
    """The second derivative along a direction."""
    return Operator(np.zeros(len(direction)), np.outer(direction, direction))


def laplacian(dimension: int) -> Operator:
    """Δ, the sum of the second derivatives along all coordinates."""
    return Operator(np.zeros(dimension), np.eye(dimension))


class Jet(NamedTuple):
    """A batch of values and their derivatives: arrays of shape (n, features).

    Each stream is an array of its own. As slices of one array they would need a single
    matrix product, but the gradient of a slice is padded and summed, which costs more
    than the larger product saves.
    """

    value: jax.Array
    first: tuple[jax.Array, ...]
    """∂_i for each coordinate."""
    second: tuple[jax.Array, ...]
    """Σ_ij b_ij ∂_i ∂_j for each second-order sum."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to carry through the layers for a set of operators."""

    operators: tuple[tuple[str, Operator], ...]

    @classmethod
    def of(cls, operators: Mapping[str, Operator]) -> "Sweep":
        return cls(tuple(operators.items()))

    @property
    def sums(self) -> list[Operator]:
        """The operators of second order."""
        return [operator for _, operator in self.operators if operator.second.any()]

    def start(self, points: jax.Array) -> Jet:
        """The jet of the coordinates, at points of shape (n, dimension)."""
        axes = jnp.eye(points.shape[-1], dtype=points.dtype) if self.operators else ()
        first = tuple(jnp.broadcast_to(axis, points.shape) for axis in axes)
        return Jet(points, first, tuple(jnp.zeros_like(points) for _ in self.sums))

    def read(self, jet: Jet) -> dict[str, jax.Array]:
        """The value as "u", and the derivatives by the names of their operators."""
        result = {"u": jet.value}
        second = dict(zip(self.sums, jet.second, strict=True))
        for name, operator in self.operators:
            coefficients = zip(operator.first, jet.first, strict=True)
            terms = [float(a) * stream for a, stream in coefficients if a]
            result[name] = jnp.asarray(sum(terms, second.get(operator, 0.0)))
        return result


NOTHING = Sweep(())
"""No derivatives: only values pass through the layers."""


def linear(jet: Jet, kernel: jax.Array, bias: jax.Array | float = 0.0) -> Jet:
    """The affine map x @ kernel + bias of a jet; a constant has no derivatives."""
    value, first, second = jax.tree.map(lambda stream: stream @ kernel, jet)
    return Jet(value + bias, first, second)


def activate(phi: Activation, jet: Jet, sums: list[Operator]) -> Jet:
    """An elementwise activation of a jet."""
    if not jet.first:
        return Jet(phi(jet.value), (), ())
    one = jnp.ones_like(jet.value)

    def with_slope(x):
        return jax.jvp(phi, (x,), (one,))

    (value, slope), (_, curvature) = jax.jvp(with_slope, (jet.value,), (one,))

    def second(stream, operator):
        terms = [b * jet.first[i] * jet.first[j] for i, j, b in operator.second_terms()]
        return slope * stream + curvature * sum(terms)

    return Jet(
        value,
        tuple(slope * stream for stream in jet.first),
        tuple(map(second, jet.second, sums)),
    )


def in_blocks(
    f: Callable[[jax.Array], Any], points: jax.Array, size: int | None
) -> Any:
    """f(points), `size` points at a time; f must treat each point by itself.

    The gradient of a deep network keeps every layer's streams of all points. In blocks
    it keeps those of one block, and computes each block twice. With size None all
    points are taken at once, which is faster where memory allows it.
    """
    if size is None or len(points) <= size:
        return f(points)

    def at(point):
        return jax.tree.map(lambda x: x[0], f(point[None]))

    return jax.lax.map(jax.checkpoint(at, prevent_cse=False), points, batch_size=size)


def nested_derivatives(
    u: Callable[[jax.Array], jax.Array],
    points: jax.Array,
    operators: Mapping[str, Operator],
) -> dict[str, jax.Array]:
    """The same for any function of one point, by nested forward mode.

    It is slower; it serves networks that are not written as jets, and the tests.

    Args:
      u: maps a point of shape (dimension,) to an array.
      points: shape (n, dimension).
      operators: what to compute, by name.

    Returns:
      "u" and the value of each operator: arrays with a leading axis of n.
    """
    axes = jnp.eye(points.shape[-1], dtype=points.dtype)

    def along(f, i):
        return lambda x: jax.jvp(f, (x,), (axes[i],))[1]

    def apply(operator, x):
        first = enumerate(operator.first)
        terms = [float(a) * along(u, i)(x) for i, a in first if a]
        second = operator.second_terms()
        return sum(terms + [b * along(along(u, i), j)(x) for i, j, b in second])

    result = {"u": jax.vmap(u)(points)}
    for name, operator in operators.items():
        result[name] = jax.vmap(functools.partial(apply, operator))(points)
    return result
