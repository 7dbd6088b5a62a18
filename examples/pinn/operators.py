r"""Derivatives of a network in one forward sweep.

A differential operator of up to second order is

    D u = Σ_i a_i ∂_i u  +  Σ_ij b_ij ∂_i ∂_j u,

which covers u_x, u_t, u_xx, u_xt and the Laplacian. Beside the value u of a point, the
sweep carries its first derivatives along the coordinates, and one stream S for each
second-order sum. Several fields u, v, ... are columns of the last layer's streams, so
they share all that comes before. A linear layer maps all streams in the same way. An
activation φ maps

    u     ->  φ(u)
    ∂_i u ->  φ'(u) ∂_i u
    S     ->  φ'(u) S + φ''(u) Σ_ij b_ij ∂_i u ∂_j u

(Taylor mode; for the Laplacian, the forward Laplacian of Li et al., 2023). The sum is
taken before the layers and not after them, so a Laplacian in d dimensions costs d + 2
streams, and nested forward mode 4 d.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Activation = Callable[[jax.Array], jax.Array]
SecondOrderSum = tuple[tuple[int, int, float], ...]
"""Σ_ij b_ij ∂_i ∂_j: those (i, j, b_ij) that are not zero."""


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A linear differential operator: the coefficients of ∂_i and of ∂_i ∂_j."""

    first: np.ndarray
    second: np.ndarray

    @property
    def dimension(self) -> int:
        """The number of coordinates."""
        return len(self.first)

    def __call__(self, field: str) -> "Derivative":
        """This operator of a field: d(1, 0)("u") is u_x."""
        return Derivative(self, field)

    def __add__(self, other: "Operator") -> "Operator":
        self._check_dimension(other)
        return Operator(self.first + other.first, self.second + other.second)

    def __sub__(self, other: "Operator") -> "Operator":
        return self + (-1.0) * other

    def __rmul__(self, factor: float) -> "Operator":
        return Operator(factor * self.first, factor * self.second)

    def __matmul__(self, other: "Operator") -> "Operator":
        """One after the other: d(1, 0) @ d(0, 1) is the mixed derivative ∂_x ∂_t."""
        self._check_dimension(other)
        if self.second.any() or other.second.any():
            raise ValueError(
                "at most order 2 is supported: make a derivative a field of its own, "
                "with an equation that defines it"
            )
        product = np.outer(self.first, other.first)
        return Operator(np.zeros(self.dimension), (product + product.T) / 2)

    def _check_dimension(self, other: "Operator") -> None:
        if self.dimension != other.dimension:
            raise ValueError(
                f"operators of {self.dimension} and of {other.dimension} coordinates"
            )

    def second_terms(self) -> SecondOrderSum:
        """The second-order sum; equal sums of different operators are equal."""
        indices = np.argwhere(self.second).tolist()
        return tuple((i, j, float(self.second[i, j])) for i, j in indices)


@dataclasses.dataclass(frozen=True)
class Derivative:
    """An operator of one of several fields."""

    operator: Operator
    field: str


def d(*direction: float) -> Operator:
    """The first derivative along a direction; of u(x, t), u_x is along (1, 0).

    Raises ValueError for the direction zero, along which nothing changes.
    """
    n = len(direction)
    if not any(direction):
        raise ValueError(
            f"d and dd take a direction, which is not zero, got {direction}: with one "
            "coordinate it is d(1), with two d(1, 0) and d(0, 1)"
        )
    return Operator(np.array(direction, float), np.zeros((n, n)))


def dd(*direction: float) -> Operator:
    """The second derivative along a direction."""
    return d(*direction) @ d(*direction)


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
    """What to carry through the layers for the derivatives of some fields."""

    fields: tuple[str, ...]
    derivatives: tuple[tuple[str, Derivative], ...]

    @classmethod
    def of(
        cls,
        operators: Mapping[str, Operator | Derivative],
        fields: tuple[str, ...] = ("u",),
    ) -> "Sweep":
        """A sweep for derivatives by name; an Operator is of the only field."""
        derivatives = []
        for name, operator in operators.items():
            if isinstance(operator, Operator) and len(fields) == 1:
                operator = operator(fields[0])
            if not isinstance(operator, Derivative) or operator.field not in fields:
                raise ValueError(
                    f"{name} must be a derivative of one of the fields "
                    f'{", ".join(fields)}, as d(1, 0)("{fields[0]}") is, got {operator}'
                )
            derivatives.append((name, operator))
        return cls(fields, tuple(derivatives))

    def only(self, names: Collection[str]) -> "Sweep":
        """The same fields, and those derivatives whose names are among the given."""
        kept = tuple(item for item in self.derivatives if item[0] in names)
        return Sweep(self.fields, kept)

    @property
    def sums(self) -> tuple[SecondOrderSum, ...]:
        """The second-order sums, each of them once, whichever fields they are of."""
        sums = (item.operator.second_terms() for _, item in self.derivatives)
        return tuple(dict.fromkeys(filter(None, sums)))

    def start(self, points: jax.Array) -> Jet:
        """The jet of the coordinates, at points of shape (n, dimension)."""
        axes = jnp.eye(points.shape[-1], dtype=points.dtype) if self.derivatives else ()
        first = tuple(jnp.broadcast_to(axis, points.shape) for axis in axes)
        return Jet(points, first, tuple(jnp.zeros_like(points) for _ in self.sums))

    def read(self, jet: Jet) -> dict[str, jax.Array]:
        """The fields and the derivatives by their names, each of shape (n,).

        Args:
          jet: the last layer's, with one column for each field.
        """
        result = {field: jet.value[..., k] for k, field in enumerate(self.fields)}
        second = dict(zip(self.sums, jet.second, strict=True))
        zero = jnp.zeros_like(jet.value)
        for name, derivative in self.derivatives:
            operator, column = derivative.operator, self.fields.index(derivative.field)
            coefficients = zip(operator.first, jet.first, strict=True)
            terms = [float(a) * stream for a, stream in coefficients if a]
            stream = sum(terms, second.get(operator.second_terms(), zero))
            result[name] = stream[..., column]
        return result


def linear(jet: Jet, kernel: jax.Array, bias: jax.Array | float = 0.0) -> Jet:
    """The affine map x @ kernel + bias of a jet; a constant has no derivatives."""
    value, first, second = jax.tree.map(lambda stream: stream @ kernel, jet)
    return Jet(value + bias, first, second)


def activate(phi: Activation, jet: Jet, sums: Sequence[SecondOrderSum]) -> Jet:
    """An elementwise activation of a jet."""
    if not jet.first:
        return Jet(phi(jet.value), (), ())
    one = jnp.ones_like(jet.value)

    def with_slope(x):
        return jax.jvp(phi, (x,), (one,))

    (value, slope), (_, curvature) = jax.jvp(with_slope, (jet.value,), (one,))

    def second(stream, second_order_sum):
        terms = [b * jet.first[i] * jet.first[j] for i, j, b in second_order_sum]
        return slope * stream + curvature * sum(terms)

    first = tuple(slope * stream for stream in jet.first)
    return Jet(value, first, tuple(map(second, jet.second, sums)))


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
    operators: Mapping[str, Operator | Derivative],
    fields: tuple[str, ...] = ("u",),
) -> dict[str, jax.Array]:
    """The same for any function of one point, by nested forward mode, which is slower.

    Args:
      u: maps a point of shape (dimension,) to a scalar, or to an array of shape
        (len(fields),).
      points: shape (n, dimension).
      operators: what to compute, by name.
      fields: the names of what u returns.
    """
    axes = jnp.eye(points.shape[-1], dtype=points.dtype)

    def along(f, i):
        return lambda x: jax.jvp(f, (x,), (axes[i],))[1]

    def at(x):
        def values(x):
            return dict(zip(fields, jnp.atleast_1d(u(x)), strict=True))

        result = values(x)
        for name, derivative in Sweep.of(operators, fields).derivatives:
            total = jnp.zeros((), x.dtype)
            for i, a in enumerate(derivative.operator.first):
                if a:
                    total += float(a) * along(values, i)(x)[derivative.field]
            for i, j, b in derivative.operator.second_terms():
                total += b * along(along(values, i), j)(x)[derivative.field]
            result[name] = total
        return result

    return jax.vmap(at)(points)
