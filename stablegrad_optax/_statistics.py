r"""The scale of a layer: a standard deviation that is safe and, if it can be, one read.

With N entries x of a layer, pooled over its weight leaves,

    m = Σ x / N        σ² = Σ |x - m|² / N        rms² = σ² + |m|²

The textbook form fails where squares leave the range of the dtype: in float32 below
1e-19 and above 1e+19, which vanishing and exploding gradients reach. Two forms are
used.

*Centred*: Σ |(x - m) / a|² with a = max |x|, which neither overflows nor underflows,
whatever the gradient, nor cancels. It has no branch and reads a leaf three times, but
only once from memory if the leaf is small enough for the cache.

*Raw*: Σ x and Σ |x|² in one read, σ² = Σ |x|²/N - |m|². It loses digits if |m| ≫ σ, and
range as above, but both show in the two sums. Large layers use it, and where one of
them is not accurate a `lax.cond` for all of them takes the centred form instead. Under
`vmap` the condition becomes a select, which is as right and reads more.
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
    layers = [_in_accumulation_dtype(layer) for layer in layers]
    axes = [[leaf.stack_axis for leaf in layer] for layer in layers]
    values = [[leaf.values for leaf in layer] for layer in layers]
    moments = _moments(_static(axes, axis_name), values)
    of_layer = _std_or_rms if statistic == "std" else _rms
    shards = 1 if axis_name is None else _axis_size(axis_name)
    return [
        of_layer(mean, std, shards * _count(layer))
        for (mean, std), layer in zip(moments, layers, strict=True)
    ]


def _std_or_rms(mean: jax.Array, std: jax.Array, count: int) -> jax.Array:
    """The std; where that is but rounding noise beside the mean, the rms, |mean|."""
    size = _safe_abs(mean)
    degenerate = std <= _times(size, 1 / (_DEGENERATE * math.sqrt(count)))
    return lax.select(degenerate, size, std)


def _rms(mean: jax.Array, std: jax.Array, count: int) -> jax.Array:
    """sqrt(std² + |mean|²), squaring nothing larger than one."""
    del count
    size = _safe_abs(mean)
    # The unit cancels, and so it does in the derivative.
    unit = lax.stop_gradient(lax.max(size, std))
    unit = lax.select(unit == 0, lax.full_like(unit, 1), unit)
    square = _square(size / unit) + _square(std / unit)
    is_zero = square == 0
    root = lax.sqrt(lax.select(is_zero, lax.full_like(square, 1), square))
    return lax.select(is_zero, lax.full_like(root, 0), root) * unit


def _safe_abs(mean: jax.Array) -> jax.Array:
    """|mean| with gradient zero at a complex zero, where that of lax.abs is NaN."""
    if not jnp.iscomplexobj(mean):
        return lax.abs(mean)
    is_zero = mean == 0
    safe = lax.select(is_zero, lax.full_like(mean, 1), mean)
    size = lax.abs(safe)
    return lax.select(is_zero, lax.full_like(size, 0), size)


# --- Mean and standard deviation ---


@dataclasses.dataclass(frozen=True)
class _Static:
    """What the moments need to know beside the arrays; hashable for custom_jvp."""

    stack_axes: tuple[tuple[int | None, ...], ...]
    axis_name: AxisName | None


def _static(axes: Sequence[Sequence[int | None]], axis_name: AxisName | None):
    if axis_name is not None and not isinstance(axis_name, str):
        axis_name = tuple(axis_name)
    return _Static(tuple(map(tuple, axes)), axis_name)


def _with_axes(static: _Static, values: Any) -> list[list[Slices]]:
    return [
        [Slices(x, axis) for x, axis in zip(layer, axes, strict=True)]
        for layer, axes in zip(values, static.stack_axes, strict=True)
    ]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _moments(static: _Static, values: Any) -> list[tuple[jax.Array, jax.Array]]:
    """Mean and standard deviation of each layer, in its accumulation dtype."""
    layers = _with_axes(static, values)
    reduce = _Reduction(static.axis_name)
    moments: dict[int, Any] = {}
    large = []
    for i, layer in enumerate(layers):
        if _in_memory(layer) > _SMALL_LAYER:
            large.append(i)
        else:
            moments[i] = _centred(layer, reduce)
    if large:
        of_large = _raw_or_centred([layers[i] for i in large], reduce)
        moments.update(zip(large, of_large, strict=True))
    return [moments[i] for i in range(len(layers))]


@_moments.defjvp
def _moments_jvp(static, primals, tangents):
    """The derivatives dm = Σ dx / N and dσ = Σ Re(conj(x - m) dx) / (N σ).

    Written with (x - m) / σ, and zero at σ = 0, they stay in range; differentiating the
    primal code would not, and would give NaN at zero.
    """
    (values,), (tangent_values,) = primals, tangents
    layers, dots = _with_axes(static, values), _with_axes(static, tangent_values)
    reduce = _Reduction(static.axis_name)
    moments = _moments(static, values)
    tangents_out = []
    for layer, layer_dot, (mean, std) in zip(layers, dots, moments, strict=True):
        one = lax.full_like(std, 1)
        inverse = lax.select(std > 0, one / lax.select(std > 0, std, one), std * 0)
        share = 1 / (reduce.shards * _count(layer))
        mean_dot = reduce(layer_dot, lambda x: _times(x.values, share))
        std_dot = reduce(
            [
                Slices(_real(_scores(x, mean, inverse) * dx.values), x.stack_axis)
                for x, dx in zip(layer, layer_dot, strict=True)
            ],
            lambda x: _times(x.values, share),
        )
        tangents_out.append((mean_dot, std_dot))
    return moments, tangents_out


def _scores(leaf: Slices, mean: jax.Array, inverse: jax.Array) -> jax.Array:
    """conj(x - mean) / σ."""
    deviation = leaf.values - _along(mean, leaf)
    if jnp.iscomplexobj(deviation):
        deviation = lax.conj(deviation)
    return deviation * _along(inverse, leaf).astype(deviation.dtype)


def _raw_or_centred(layers: Layers, reduce: "_Reduction"):
    raw = [_raw(layer, reduce) for layer in layers]
    accurate = functools.reduce(lax.bitwise_and, [ok for *_, ok in raw])

    def centred(values, moments):
        del moments
        return [
            _centred(
                [Slices(x, leaf.stack_axis) for x, leaf in zip(xs, layer, strict=True)],
                reduce,
            )
            for xs, layer in zip(values, layers, strict=True)
        ]

    return lax.cond(
        accurate,
        lambda values, moments: moments,
        centred,
        [[leaf.values for leaf in layer] for layer in layers],
        [(mean, std) for mean, std, _ in raw],
    )


def _raw(layer: Sequence[Slices], reduce: "_Reduction"):
    """Mean and std from one read of the layer, and whether they are accurate."""
    share = 1 / reduce.count(layer)
    # Nothing but the entries and their squares inside the sums: XLA's CPU backend has
    # kernels for these two, several times as fast as those that it compiles.
    mean = _times(reduce(layer, lambda x: x.values), share)
    mean_square = _times(reduce(layer, lambda x: _square(x.values)), share)
    variance = mean_square - _square(mean)
    info = np.finfo(mean_square.dtype)
    # Squares below the smallest normal number are lost; they do not matter while the
    # mean square is far above it. An overflow anywhere makes the comparison false.
    in_range = (mean_square > info.tiny / info.eps) & (mean_square < info.max)
    accurate = in_range & (variance > _times(mean_square, _CONDITIONED))
    if accurate.ndim:
        accurate = jnp.all(accurate)
    return mean, lax.sqrt(lax.max(variance, lax.full_like(variance, 0))), accurate


def _centred(layer: Sequence[Slices], reduce: "_Reduction"):
    """Mean and std without a branch, right over the whole range.

    In units of the largest magnitude no entry exceeds one, and none that matters is
    small.
    """
    share = 1 / reduce.count(layer)
    unit = reduce.max(layer, _magnitude)
    unit = lax.select(unit == 0, lax.full_like(unit, 1), unit)

    def in_units(leaf: Slices) -> jax.Array:
        # Dividing by a scalar in the loop saves compiling a kernel for its inverse.
        return leaf.values / _along(unit, leaf).astype(leaf.values.dtype)

    mean = _times(reduce(layer, in_units), share)
    mean_square = _times(
        reduce(layer, lambda x: _square(in_units(x) - _along(mean, x))), share
    )
    return mean * unit.astype(mean.dtype), lax.sqrt(mean_square) * unit


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
    # lax rather than jnp: tracing thousands of leaves takes half the time.
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
        return lax.real(x) * lax.real(x) + lax.imag(x) * lax.imag(x)
    return x * x


def _real(x: jax.Array) -> jax.Array:
    return lax.real(x) if jnp.iscomplexobj(x) else x


def _magnitude(x: jax.Array) -> jax.Array:
    """|x|, or |Re x| + |Im x|, which needs no square."""
    if jnp.iscomplexobj(x):
        return lax.abs(lax.real(x)) + lax.abs(lax.imag(x))
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
    return x * x.dtype.type(factor)


def _count(layer: Sequence[Slices]) -> int:
    """Entries in a layer, on this shard; in one slice of it if it is stacked."""
    return sum(
        math.prod(n for a, n in enumerate(x.values.shape) if a != x.stack_axis)
        for x in layer
    )


def _in_memory(layer: Sequence[Slices]) -> int:
    return sum(leaf.values.size for leaf in layer)


def _axis_size(axis_name: AxisName) -> int:
    return lax.psum(1, axis_name)
