"""Sums over the entries of a layer: of each slice if it is stacked, over all shards."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

AxisName = str | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Slices:
    """A weight leaf and the axis along which layers are stacked in it, if any."""

    values: jax.Array
    stack_axis: int | None


Layer = Sequence[Slices]


class Reduction:
    """Sums over the entries of each slice of a layer, and over shards of the mesh."""

    def __init__(self, axis_name: AxisName | None):
        self.axis_name = axis_name
        self.shards = 1 if axis_name is None else lax.psum(1, axis_name)

    def count(self, layer: Layer) -> int:
        """Entries in a layer, over all shards; in one slice of it if it is stacked."""
        return self.shards * sum(
            math.prod(n for a, n in enumerate(x.values.shape) if a != x.stack_axis)
            for x in layer
        )

    def __call__(
        self, layer: Layer, term: Callable[[Slices], jax.Array] = lambda x: x.values
    ) -> jax.Array:
        """The sum of a term of each leaf: a scalar, or a vector over the slices."""
        total = functools.reduce(lax.add, [_sum(term(x), x.stack_axis) for x in layer])
        return total if self.axis_name is None else lax.psum(total, self.axis_name)

    def mean(
        self, layer: Layer, term: Callable[[Slices], jax.Array] = lambda x: x.values
    ) -> jax.Array:
        """The sum over the number of entries."""
        return times(self(layer, term), 1 / self.count(layer))

    def mean_square(self, layer: Layer) -> jax.Array:
        """The mean of |x|², real."""
        # Nothing but the squares inside the sum: XLA's CPU backend has a kernel for it,
        # several times as fast as those that it compiles.
        return self.mean(layer, lambda x: square(x.values))

    def max(self, layer: Layer, term: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """The largest term, none of which may be negative."""
        of_leaves = [_max(term(x.values), x.stack_axis) for x in layer]
        largest = functools.reduce(lax.max, of_leaves)
        return largest if self.axis_name is None else lax.pmax(largest, self.axis_name)


def _sum(x: jax.Array, stack_axis: int | None) -> jax.Array:
    return lax.reduce(x, x.dtype.type(0), lax.add, _other_axes(x, stack_axis))


def _max(x: jax.Array, stack_axis: int | None) -> jax.Array:
    return lax.reduce(x, x.dtype.type(-np.inf), lax.max, _other_axes(x, stack_axis))


def _other_axes(x: jax.Array, stack_axis: int | None) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.ndim) if axis != stack_axis)


def along(
    statistic: jax.Array, shape: Sequence[int], stack_axis: int | None
) -> jax.Array:
    """Broadcasts a scalar, or a vector over the slices, to the shape of a leaf."""
    axes = () if stack_axis is None else (stack_axis,)
    return lax.broadcast_in_dim(statistic, shape, axes)


def square(x: jax.Array) -> jax.Array:
    """|x|², real."""
    if jnp.iscomplexobj(x):
        return lax.add(lax.square(lax.real(x)), lax.square(lax.imag(x)))
    return lax.mul(x, x)


def magnitude(x: jax.Array) -> jax.Array:
    """|x|, or the larger of |Re x| and |Im x|, which cannot overflow."""
    if jnp.iscomplexobj(x):
        return lax.max(lax.abs(lax.real(x)), lax.abs(lax.imag(x)))
    return lax.abs(x)


def real(x: jax.Array) -> jax.Array:
    """Re x, of a real array itself."""
    return lax.real(x) if jnp.iscomplexobj(x) else x


def times(x: jax.Array, factor: float) -> jax.Array:
    """The product with a factor of the array's own dtype: no promotion."""
    return lax.mul(x, lax.full_like(x, factor))
