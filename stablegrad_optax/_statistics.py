r"""The scale of a layer: a standard deviation that is safe and, if it can be, one read.

With N entries x of a layer, pooled over its weight leaves,

    m = Σ x / N        σ² = Σ |x - m|² / N        rms² = σ² + |m|²

The textbook form fails where squares leave the range of the dtype: in float32 below
1e-19 and above 1e+19, which vanishing and exploding gradients reach. Two forms are
used.

*Centred*: Σ |(x - m) / a|² with a ≈ max |x|, which neither overflows nor underflows,
whatever the gradient, nor cancels. It has no branch and reads a leaf three times, but
only once from memory if the leaf is small enough for the cache.

*Raw*: Σ x and Σ |x|² in one read, σ² = Σ |x|²/N - |m|². It loses digits if |m| ≫ σ, and
range as above, but both show in the two sums. Large layers use it, and where one of
them is not accurate a `lax.cond` for all of them takes the centred form instead. Under
`vmap` the condition becomes a select, which is as right and reads more.

What is done for each layer is written in lax rather than jnp: with a thousand of them,
tracing operators would take as long as compiling the rest.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

STATISTICS = ("std", "rms")

AxisName = str | Sequence[str]

# The leaves of a layer with no more entries than this stay in the cache between the
# reads of the centred form (float32: 64 KiB).
_SMALL_LAYER = 2**14

# Below |mean| / (_DEGENERATE sqrt(N)) the std is no scale for the entries: they are all
# equal but for noise. The rms stands in there, so no entry of g/σ exceeds
# (_DEGENERATE + 1) sqrt(N).
_DEGENERATE = 32

# The raw form is used while its variance keeps this share of the mean square; the
# relative error of σ from cancellation is then at most 32 roundings.
_CONDITIONED = 2.0**-6


@dataclasses.dataclass(frozen=True)
class Slices:
    """A weight leaf and the axis along which layers are stacked in it, if any."""

    values: jax.Array
    stack_axis: int | None


Layers = Sequence[Sequence[Slices]]


def check_statistic(statistic: str) -> None:
    """Raises ValueError unless `statistic` is the name of a statistic."""
    if statistic not in STATISTICS:
        raise ValueError(
            f"statistic must be one of {', '.join(map(repr, STATISTICS))}, "
            f"got {statistic!r}."
        )


def layer_statistics(
    layers: Layers, statistic: str = "std", axis_name: AxisName | None = None
) -> list[jax.Array]:
    """The scale of each layer: a scalar, or a vector over the slices if it is stacked.

    float32, or float64 for layers with float64 or complex128 leaves. NaN where an entry
    is not finite, zero where all entries are zero.
    """
    check_statistic(statistic)
    if axis_name is not None and not isinstance(axis_name, str):
        axis_name = tuple(axis_name)
    layers = [_in_accumulation_dtype(layer) for layer in layers]
    stack_axes = tuple(tuple(leaf.stack_axis for leaf in layer) for layer in layers)
    values = [[leaf.values for leaf in layer] for layer in layers]
    return _scales(_Static(statistic, stack_axes, axis_name), values)


@dataclasses.dataclass(frozen=True)
class _Static:
    """What the scales need to know beside the arrays; hashable for custom_jvp."""

    statistic: str
    stack_axes: tuple[tuple[int | None, ...], ...]
    axis_name: AxisName | None


def _layers(static: _Static, values: Any) -> list[list[Slices]]:
    return [
        [Slices(x, axis) for x, axis in zip(layer, axes, strict=True)]
        for layer, axes in zip(values, static.stack_axes, strict=True)
    ]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scales(static: _Static, values: Any) -> list[jax.Array]:
    reduce = _Reduction(static.axis_name)
    robust = {"std": _robust_std, "rms": _robust_rms}[static.statistic]
    raw = {"std": _raw_std, "rms": _raw_rms}[static.statistic]

    layers = _layers(static, values)
    scales: dict[int, jax.Array] = {}
    large = []
    for i, layer in enumerate(layers):
        if _size(layer) > _SMALL_LAYER:
            large.append(i)
        else:
            scales[i] = robust(layer, reduce)
    if large:
        raws, accurate = zip(*(raw(layers[i], reduce) for i in large), strict=True)
        # One condition for all: on a GPU each costs a round trip to the host.
        of_large = lax.cond(
            functools.reduce(lax.bitwise_and, accurate),
            lambda: list(raws),
            lambda: [robust(layers[i], reduce) for i in large],
        )
        scales.update(zip(large, of_large, strict=True))
    return [scales[i] for i in range(len(layers))]


@_scales.defjvp
def _scales_jvp(static, primals, tangents):
    """The derivative dσ = Σ Re(conj(x - c) dx) / (N σ).

    c is the mean for the std, and zero for the rms. Written with (x - c) / σ, and zero
    at σ = 0, it stays in range; differentiating the primal code would not, and would
    give NaN at zero.
    """
    (values,), (tangent_values,) = primals, tangents
    reduce = _Reduction(static.axis_name)
    scales = _scales(static, values)
    scale_dots = []
    for layer, layer_dot, scale in zip(
        _layers(static, values), _layers(static, tangent_values), scales, strict=True
    ):
        mean, std = _moments(layer, reduce)
        if static.statistic == "rms":
            centre = lax.full_like(mean, 0)
        else:
            is_rms = _is_degenerate(mean, std, reduce.count(layer))
            centre = lax.select(is_rms, lax.full_like(mean, 0), mean)
        one = lax.full_like(scale, 1)
        inverse = lax.select(
            scale > 0, one / lax.select(scale > 0, scale, one), 0 * one
        )
        terms = [
            Slices(_real(_scores(x, centre, inverse) * dx.values), x.stack_axis)
            for x, dx in zip(layer, layer_dot, strict=True)
        ]
        total = reduce(terms, lambda x: x.values)
        scale_dots.append(_times(total, 1 / reduce.count(layer)))
    return scales, scale_dots


def _scores(leaf: Slices, centre: jax.Array, inverse: jax.Array) -> jax.Array:
    """conj(x - centre) / σ."""
    deviation = leaf.values - _along(centre, leaf)
    if jnp.iscomplexobj(deviation):
        deviation = lax.conj(deviation)
    return deviation * _along(inverse, leaf).astype(deviation.dtype)


# --- One read, and whether it was enough ---


def _raw_std(layer: Sequence[Slices], reduce: "_Reduction"):
    share = 1 / reduce.count(layer)
    mean = _times(reduce(layer, lambda x: x.values), share)
    mean_square = _raw_mean_square(layer, reduce)
    variance = mean_square - _square(mean)
    is_conditioned = variance > _times(mean_square, _CONDITIONED)
    scale = lax.sqrt(lax.max(variance, lax.full_like(variance, 0)))
    return scale, _all(_in_range(mean_square) & is_conditioned)


def _raw_rms(layer: Sequence[Slices], reduce: "_Reduction"):
    mean_square = _raw_mean_square(layer, reduce)
    return lax.sqrt(mean_square), _all(_in_range(mean_square))


def _raw_mean_square(layer: Sequence[Slices], reduce: "_Reduction") -> jax.Array:
    # Nothing but the squares of the entries inside the sum: XLA's CPU backend has a
    # kernel for it, several times as fast as those that it compiles.
    return _times(reduce(layer, lambda x: _square(x.values)), 1 / reduce.count(layer))


def _in_range(mean_square: jax.Array) -> jax.Array:
    # Squares below the smallest normal number are lost; they do not matter while the
    # mean square is far above it. An overflow or a NaN makes the comparison false.
    info = np.finfo(mean_square.dtype)
    return (mean_square > info.tiny / info.eps) & (mean_square < info.max)


def _all(condition: jax.Array) -> jax.Array:
    return jnp.all(condition) if condition.ndim else condition


# --- Right over the whole range ---


def _robust_std(layer: Sequence[Slices], reduce: "_Reduction") -> jax.Array:
    """The std; where that is but rounding noise beside the mean, the rms, |mean|."""
    mean, std = _moments(layer, reduce)
    is_rms = _is_degenerate(mean, std, reduce.count(layer))
    return lax.select(is_rms, lax.abs(mean), std)


def _robust_rms(layer: Sequence[Slices], reduce: "_Reduction") -> jax.Array:
    unit = _unit(layer, reduce)
    mean_square = reduce(layer, lambda x: _square(_in_units(x, unit)))
    return lax.sqrt(_times(mean_square, 1 / reduce.count(layer))) * unit


def _is_degenerate(mean: jax.Array, std: jax.Array, count: int) -> jax.Array:
    return lax.le(std, _times(lax.abs(mean), 1 / (_DEGENERATE * math.sqrt(count))))


def _moments(layer: Sequence[Slices], reduce: "_Reduction"):
    """Mean and std, centred before squaring, in units of the largest magnitude."""
    share = 1 / reduce.count(layer)
    unit = _unit(layer, reduce)
    mean = _times(reduce(layer, lambda x: _in_units(x, unit)), share)
    mean_square = _times(
        reduce(layer, lambda x: _square(lax.sub(_in_units(x, unit), _along(mean, x)))),
        share,
    )
    mean = lax.mul(mean, lax.convert_element_type(unit, mean.dtype))
    return mean, lax.mul(lax.sqrt(mean_square), unit)


def _unit(layer: Sequence[Slices], reduce: "_Reduction") -> jax.Array:
    """A power of two near the largest magnitude: in this unit squares are in range.

    Dividing by it is exact. Half the magnitude is rounded, since the largest numbers
    would be rounded up to infinity.
    """
    half = _times(lax.stop_gradient(reduce.max(layer, _magnitude)), 0.5)
    exponent_bits = np.finfo(half.dtype).nexp
    unit = lax.reduce_precision(half, exponent_bits, mantissa_bits=0)
    zero, one = lax.full_like(unit, 0), lax.full_like(unit, 1)
    return lax.select(lax.eq(unit, zero), one, unit)


def _in_units(leaf: Slices, unit: jax.Array) -> jax.Array:
    # Dividing by a scalar in the loop saves compiling a kernel for its inverse.
    unit = lax.convert_element_type(unit, leaf.values.dtype)
    return lax.div(leaf.values, _along(unit, leaf))


# --- Sums over a layer ---


class _Reduction:
    """Sums over the entries of each slice of a layer, and over shards of the mesh."""

    def __init__(self, axis_name: AxisName | None):
        self.axis_name = axis_name
        self.shards = 1 if axis_name is None else _axis_size(axis_name)

    def count(self, layer: Sequence[Slices]) -> int:
        """Entries in a layer, over all shards; in one slice of it if it is stacked."""
        return self.shards * _count(layer)

    def __call__(
        self, layer: Sequence[Slices], term: Callable[[Slices], jax.Array]
    ) -> jax.Array:
        total = functools.reduce(lax.add, [_sum(term(x), x.stack_axis) for x in layer])
        return total if self.axis_name is None else lax.psum(total, self.axis_name)

    def max(
        self, layer: Sequence[Slices], term: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
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


def _along(statistic: jax.Array, leaf: Slices) -> jax.Array:
    """Broadcasts a layer's statistic to the shape of one of its leaves."""
    axes = () if leaf.stack_axis is None else (leaf.stack_axis,)
    return lax.broadcast_in_dim(statistic, leaf.values.shape, axes)


def _square(x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        return lax.add(lax.square(lax.real(x)), lax.square(lax.imag(x)))
    return lax.mul(x, x)


def _real(x: jax.Array) -> jax.Array:
    return lax.real(x) if jnp.iscomplexobj(x) else x


def _magnitude(x: jax.Array) -> jax.Array:
    """|x|, or the larger of |Re x| and |Im x|, which cannot overflow."""
    if jnp.iscomplexobj(x):
        return lax.max(lax.abs(lax.real(x)), lax.abs(lax.imag(x)))
    return lax.abs(x)


def _in_accumulation_dtype(layer: Sequence[Slices]) -> list[Slices]:
    dtypes = [jnp.finfo(leaf.values.dtype) for leaf in layer]
    # By hand, since these promotions are meant and strict promotion would forbid them.
    is_wide = any(info.bits == 64 for info in dtypes)
    if any(jnp.iscomplexobj(leaf.values) for leaf in layer):
        dtype = jnp.complex128 if is_wide else jnp.complex64
    else:
        dtype = jnp.float64 if is_wide else jnp.float32
    return [
        Slices(lax.convert_element_type(x.values, dtype), x.stack_axis) for x in layer
    ]


def _times(x: jax.Array, factor: float) -> jax.Array:
    # A factor of the array's own dtype: no promotion, strict or not.
    return lax.mul(x, lax.full_like(x, factor))


def _count(layer: Sequence[Slices]) -> int:
    """Entries in a layer, on this shard; in one slice of it if it is stacked."""
    return sum(
        math.prod(n for a, n in enumerate(x.values.shape) if a != x.stack_axis)
        for x in layer
    )


def _size(layer: Sequence[Slices]) -> int:
    return sum(leaf.values.size for leaf in layer)


def _axis_size(axis_name: AxisName) -> int:
    return lax.psum(1, axis_name)
