r"""The scale of a layer, right over the whole range of the dtype, and the gain.

With N elements x of a layer, pooled over its weight leaves, one pass gives

    m = Σ x / N        rms² = Σ |x|² / N        std² = rms² - |m|²
    σ² = max(std², rms² / 256)

The floor keeps the gain continuous and bounded where the elements are nearly equal,
where std² would be rounding error.

Squares leave the range of float32 below 1e-19 and above 1e+19, which vanishing and
exploding gradients reach. There the same sums are taken of x / u, where the unit u is a
power of two that the largest magnitude decides. Layers that fit in the cache look for
that magnitude at once; for the others one condition decides whether any has to.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from stablegrad_optax._layers import Layer

AxisName = str | Sequence[str]

STATISTICS = ("std", "rms")

# A layer with no more elements stays in the cache between two passes over it.
_SMALL_LAYER = 2**14


class Slices(NamedTuple):
    """A leaf and the axis along which layers are stacked in it, if any."""

    values: jax.Array
    stack_axis: int | None

    @property
    def other_axes(self) -> tuple[int, ...]:
        """The axes of a single layer."""
        return tuple(a for a in range(self.values.ndim) if a != self.stack_axis)


class Scale(NamedTuple):
    """σ = √square / inverse_unit, of which neither leaves the range of the dtype.

    Scalars, or vectors over the slices of a stacked layer.
    """

    square: jax.Array
    inverse_unit: jax.Array  # a power of two, and 1 unless σ is extreme


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What a layer's scale depends on beside its elements; hashable, for jit."""

    statistic: str
    stack_axes: tuple[int | None, ...]
    axis_name: AxisName | None
    count: int  # elements, over all shards; of one slice if the layer is stacked

    def leaves(self, values: Sequence[jax.Array]) -> list[Slices]:
        return [Slices(x, a) for x, a in zip(values, self.stack_axes, strict=True)]


def check_statistic(statistic: str) -> None:
    """Raises ValueError unless `statistic` is the name of a statistic."""
    if statistic not in STATISTICS:
        raise ValueError(
            f"statistic must be one of {', '.join(map(repr, STATISTICS))}, "
            f"got {statistic!r}."
        )


def layer_scales(
    layers: Sequence[Layer],
    leaves: Sequence[Any],
    statistic: str = "std",
    axis_name: AxisName | None = None,
) -> list[tuple[Layer, Scale]]:
    """Each layer that has weights, and its scale, from the leaves of the tree."""
    layers = [layer for layer in layers if layer.weights]
    slices = [
        [
            Slices(jnp.asarray(leaves[leaf.index]), leaf.stack_axis)
            for leaf in layer.weights
        ]
        for layer in layers
    ]
    return list(zip(layers, scales(slices, statistic, axis_name), strict=True))


def scales(
    layers: Sequence[Sequence[Slices]],
    statistic: str = "std",
    axis_name: AxisName | None = None,
) -> list[Scale]:
    """The scale of each layer.

    float32, or float64 for layers with float64 or complex128 leaves. Zero where all
    elements are zero, NaN where one is not finite.

    Args:
      layers: for each layer its weight leaves, none of them empty.
      statistic: "std" or "rms".
      axis_name: mesh axes over which the leaves are sharded.
    """
    check_statistic(statistic)
    if axis_name is not None and not isinstance(axis_name, str):
        axis_name = tuple(axis_name)
    shards = 1 if axis_name is None else lax.psum(1, axis_name)
    results: dict[int, Scale] = {}
    large = {}
    for i, layer in enumerate(layers):
        stack_axes = tuple(leaf.stack_axis for leaf in layer)
        count = sum(
            math.prod(leaf.values.shape[a] for a in leaf.other_axes) for leaf in layer
        )
        layout = _Layout(statistic, stack_axes, axis_name, shards * count)
        values = in_accumulation_dtype([leaf.values for leaf in layer])
        if sum(x.size for x in values) <= _SMALL_LAYER:
            results[i] = _in_units(layout, values)
        else:
            large[i] = layout, values
    if large:
        of_large = _of_large_layers(*zip(*large.values(), strict=True))
        results.update(zip(large, of_large, strict=True))
    return [results[i] for i in range(len(layers))]


def in_accumulation_dtype(values: Sequence[jax.Array]) -> list[jax.Array]:
    is_wide = any(jnp.finfo(x.dtype).bits == 64 for x in values)
    if any(jnp.iscomplexobj(x) for x in values):
        dtype = jnp.complex128 if is_wide else jnp.complex64
    else:
        dtype = jnp.float64 if is_wide else jnp.float32
    # Explicitly: strict promotion of dtypes would forbid what is meant here.
    return [x.astype(dtype) for x in values]


# Jitted, so that outside of jit the condition is not compiled at every call.
@functools.partial(jax.jit, static_argnums=0)
def _of_large_layers(
    layouts: Sequence[_Layout], layers: Sequence[Sequence[jax.Array]]
) -> list[Scale]:
    """In one pass over each layer, unless the squares of one of them left the range."""
    pairs = list(zip(layouts, layers, strict=True))
    mean_squares, squares = zip(*(_squares(*pair) for pair in pairs), strict=True)
    in_range = [_is_in_range(x) for x in mean_squares]

    def in_one_pass():
        return [Scale(square, jnp.ones_like(square)) for square in squares]

    def in_units_if_needed():
        # A layer of zeros is in range; that squares underflow does not tell it.
        largest = [_largest(*pair) for pair in pairs]
        or_zero = [ok | (top == 0) for ok, top in zip(in_range, largest, strict=True)]
        return lax.cond(
            _all(or_zero), in_one_pass, lambda: [_in_units(*pair) for pair in pairs]
        )

    return lax.cond(_all(in_range), in_one_pass, in_units_if_needed)


def _is_in_range(mean_square: jax.Array) -> jax.Array:
    """Whether no square overflowed, and those that underflow do not matter."""
    info = jnp.finfo(mean_square.dtype)
    return (mean_square > info.tiny / info.eps) & (mean_square < info.max)


def _all(conditions: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.logical_and, map(jnp.all, conditions))


# Jitted, so that it is traced once for all layers of the same shapes.
@functools.partial(jax.jit, static_argnums=0)
def _in_units(layout: _Layout, values: Sequence[jax.Array]) -> Scale:
    """The scale, from sums in a unit in which squares are in range."""
    largest = _largest(layout, values)
    # For float32, 2**-80 and 2**80 where magnitudes are beyond 2**-40 and 2**40. By
    # comparisons, since a division would be a kernel of its own.
    exponent = 5 * jnp.finfo(largest.dtype).maxexp // 8
    limit, unit = 2.0 ** (exponent // 2), 2.0**exponent
    is_small, is_large = largest < 1 / limit, largest > limit
    inverse = jnp.where(is_small, unit, jnp.where(is_large, 1 / unit, 1.0))
    inverse = inverse.astype(largest.dtype)
    in_units = [
        x.values * _along(inverse.astype(x.values.dtype), x)
        for x in layout.leaves(values)
    ]
    return Scale(_squares(layout, in_units)[1], inverse)


@functools.partial(jax.jit, static_argnums=0)
def _squares(
    layout: _Layout, values: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """rms² and σ²."""
    mean_square = _mean(layout, [_abs_square(x) for x in values])
    # The scale of a single element is its magnitude.
    if layout.statistic == "rms" or layout.count == 1:
        # NaN if it is infinite, as the variance is.
        return mean_square, mean_square + 0 * mean_square
    variance = mean_square - _abs_square(_mean(layout, values))
    return mean_square, jnp.maximum(variance, mean_square / 256)


def _mean(layout: _Layout, values: Sequence[jax.Array]) -> jax.Array:
    """Over the layer and its shards."""
    sums = [jnp.sum(x.values, x.other_axes) for x in layout.leaves(values)]
    total = functools.reduce(lax.add, sums)
    if layout.axis_name is not None:
        total = lax.psum(total, layout.axis_name)
    return total * (1 / layout.count)


def _largest(layout: _Layout, values: Sequence[jax.Array]) -> jax.Array:
    """The largest magnitude, a constant for differentiation."""
    magnitudes = [_magnitude(lax.stop_gradient(x)) for x in values]
    maxima = [jnp.max(x.values, x.other_axes) for x in layout.leaves(magnitudes)]
    largest = functools.reduce(lax.max, maxima)
    if layout.axis_name is not None:
        largest = lax.pmax(largest, layout.axis_name)
    return largest


def _abs_square(x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        return lax.square(lax.real(x)) + lax.square(lax.imag(x))
    return lax.square(x)


def _magnitude(x: jax.Array) -> jax.Array:
    """|x|, or the larger of |Re x| and |Im x|, which cannot overflow."""
    if jnp.iscomplexobj(x):
        return lax.max(lax.abs(lax.real(x)), lax.abs(lax.imag(x)))
    return lax.abs(x)


def _along(statistic: jax.Array, leaf: Slices) -> jax.Array:
    """A scalar, or a vector over the slices, in the shape of the leaf."""
    axes = () if leaf.stack_axis is None else (leaf.stack_axis,)
    return lax.broadcast_in_dim(statistic, leaf.values.shape, axes)


@jax.jit
def value(scale: Scale) -> jax.Array:
    """σ itself, a number of the dtype's normal range or zero."""
    info = jnp.finfo(scale.square.dtype)
    is_zero = scale.square == 0
    # The derivative of the root is not finite at zero.
    root = lax.sqrt(jnp.where(is_zero, 1, scale.square))
    sigma = jnp.clip(root / scale.inverse_unit, info.tiny, info.max)
    return jnp.where(is_zero, 0, sigma)


# γ as the factors by which an element is multiplied one after the other: γ itself may
# leave the range of the dtype where γ x does not.
Gain = tuple[jax.Array, ...]


@jax.jit
def gain(scale: Scale, reference: ArrayLike, max_gain: ArrayLike | None) -> Gain:
    """min(ρ/σ, max_gain), and 1 where σ is zero."""
    # Zero where σ is, so that XLA need not compute the square again where it is used.
    root = lax.rsqrt(jnp.where(scale.square == 0, jnp.inf, scale.square))
    is_zero = root == 0
    inverse, rho = scale.inverse_unit, _like(root, reference)
    if max_gain is not None:
        bound = _like(root, max_gain)
        is_bound = inverse * root * rho > bound
        inverse, root = (jnp.where(is_bound, 1, x) for x in (inverse, root))
        rho = jnp.where(is_bound, bound, rho)
    return tuple(jnp.where(is_zero, 1, factor) for factor in (inverse, root, rho))


def _like(like: jax.Array, scalar: ArrayLike) -> jax.Array:
    # Complex from optax.inject_hyperparams on a complex tree.
    return jnp.broadcast_to(jnp.real(scalar).astype(like.dtype), like.shape)


@functools.partial(jax.jit, static_argnums=(2, 3))
def rescale(
    leaf: jax.Array, gain: Gain, stack_axis: int | None, saturate: bool
) -> jax.Array:
    """The leaf times its gain in the leaf's dtype, computed in that of the gain.

    With `saturate`, a finite element stays finite where the product leaves the leaf's
    dtype, and an infinite one becomes NaN.
    """

    def rescaled(x):
        return _product(Slices(x, stack_axis), gain, saturate).astype(x.dtype)

    return _on_real_parts(rescaled, leaf)


@jax.jit
def rescaled_sum(leaf: jax.Array, gain: Gain) -> jax.Array:
    """The sum over slices along the first axis, each times its gain; it saturates."""

    def total(x):
        products = _product(Slices(x, 0), gain, saturate=True)
        # Term by term: along the first axis, XLA's reduction for CPUs is a hundred
        # times slower.
        total = functools.reduce(lax.add, [products[k] for k in range(len(x))])
        return _keep_finite(total, x.dtype).astype(x.dtype)

    return _on_real_parts(total, leaf)


def _product(leaf: Slices, gain: Gain, saturate: bool) -> jax.Array:
    """A real leaf times its gain, in the dtype of the gain."""
    inverse, root, rho = (_along(factor, leaf) for factor in gain)
    wide = leaf.values.astype(inverse.dtype)
    x = wide * inverse * root
    if saturate:
        x = _keep_finite(x, x.dtype)
    x *= rho
    if saturate:
        # The product with zero is NaN where the element is not finite.
        x = _keep_finite(x, leaf.values.dtype) + wide * 0
    return x


def _on_real_parts(f: Callable[[jax.Array], jax.Array], leaf: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(leaf):
        return lax.complex(f(lax.real(leaf)), f(lax.imag(leaf)))
    return f(leaf)


def _keep_finite(x: jax.Array, dtype: Any) -> jax.Array:
    """Clips what is beyond the range of the dtype; NaN stays."""
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(x, -limit, limit)
