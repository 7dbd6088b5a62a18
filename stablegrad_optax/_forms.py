r"""Three ways to take the scale of a layer, each right where it is used.

With N entries x of a layer, pooled over its weight leaves,

    m = Σ x / N        σ² = Σ |x - m|² / N        rms² = σ² + |m|²

The textbook form σ² = Σ |x|²/N - |m|² reads the entries once. It loses digits where
|m| ≫ σ, and fails where squares leave the range of the dtype: in float32 below 1e-19
and above 1e+19, which vanishing and exploding gradients reach. Hence

*wide*: the textbook form with float64 sums of float32 entries, whose squares neither
leave its range nor lose a digit. Two sums and no more, but float64 has to be part of
the hardware, and XLA's CPU backend sums it without vector instructions;

*centred*: Σ |(x - m) / a|² with a ≈ max |x|, which neither overflows nor underflows,
whatever the gradient, nor cancels. It has no branch and reads a leaf three times, but
only once from memory if the leaf is small enough for the cache;

*raw*: the textbook form in the dtype of the entries, and whether it was accurate, which
shows in its two sums.

All are written in lax rather than jnp, and traced once for all layers of the same
shapes: with a thousand of them, tracing would take as long as compiling the rest.
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

from stablegrad_optax._reductions import (
    AxisName,
    Layer,
    Reduction,
    Slices,
    along,
    magnitude,
    square,
    times,
)

# Below |mean| / (DEGENERATE sqrt(N)) the std is no scale for the entries: they are all
# equal but for noise. The rms stands in there, so no entry of g/σ exceeds
# (DEGENERATE + 1) sqrt(N).
DEGENERATE = 32

# The raw form is accurate while its variance keeps this share of the mean square; the
# relative error of σ from cancellation is then at most 32 roundings.
_CONDITIONED = 2.0**-6

# What is wanted of a layer, as a function of its scale and of further arguments.
Then = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a layer's scale depends on beside its entries; hashable, for jit."""

    statistic: str
    stack_axes: tuple[int | None, ...]
    axis_name: AxisName | None
    is_small: bool

    def layer(self, values: Sequence[jax.Array]) -> list[Slices]:
        """The layer's leaves with their stack axes."""
        return [Slices(x, a) for x, a in zip(values, self.stack_axes, strict=True)]

    @property
    def reduce(self) -> Reduction:
        """Sums over the layer."""
        return Reduction(self.axis_name)


@functools.partial(jax.jit, static_argnums=(0, 1))
def wide(plan: Plan, then: Then, values: Sequence[jax.Array], args: Any) -> Any:
    """The textbook form in float64, of float32 or complex64 entries."""
    reduce = plan.reduce
    # Within the library alone: whether x64 is on is the user's choice.
    with jax.enable_x64(True):
        layer = [
            Slices(lax.convert_element_type(x.values, _wider(x.values)), x.stack_axis)
            for x in plan.layer(values)
        ]
        variance = mean_square = reduce.mean_square(layer)
        if plan.statistic == "std":
            square_of_mean = square(reduce.mean(layer))
            variance = lax.sub(mean_square, square_of_mean)
            # The rms, which is the mean there.
            limit = times(square_of_mean, 1 / (DEGENERATE**2 * reduce.count(layer)))
            is_rms = lax.le(variance, limit)
            variance = lax.select(is_rms, square_of_mean, variance)
        else:
            # An infinite entry gives NaN, as it does in the other forms.
            variance = lax.add(mean_square, times(mean_square, 0.0))
        scale = lax.convert_element_type(lax.sqrt(variance), np.float32)
    return then(scale, *args)


def _wider(x: jax.Array) -> Any:
    return np.complex128 if jnp.iscomplexobj(x) else np.float64


@functools.partial(jax.jit, static_argnums=(0, 1))
def centred(plan: Plan, then: Then, values: Sequence[jax.Array], args: Any) -> Any:
    """Right over the whole range; for the std, the rms where it is but noise."""
    layer, reduce = plan.layer(values), plan.reduce
    if plan.statistic == "rms":
        unit = _unit(layer, reduce)
        mean_square = reduce.mean(layer, lambda x: square(_in_units(x, unit)))
        return then(lax.mul(lax.sqrt(mean_square), unit), *args)
    mean, std = moments(layer, reduce)
    is_rms = is_degenerate(mean, std, reduce.count(layer))
    return then(lax.select(is_rms, lax.abs(mean), std), *args)


@functools.partial(jax.jit, static_argnums=0)
def raw(plan: Plan, values: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The square of the scale in one read, and whether it is accurate."""
    layer, reduce = plan.layer(values), plan.reduce
    variance = mean_square = reduce.mean_square(layer)
    # Squares below the smallest normal number are lost; they do not matter while the
    # mean square is far above it. An overflow or a NaN makes the comparison false.
    info = np.finfo(mean_square.dtype)
    accurate = (mean_square > info.tiny / info.eps) & (mean_square < info.max)
    if plan.statistic == "std":
        variance = lax.sub(mean_square, square(reduce.mean(layer)))
        accurate &= variance > times(mean_square, _CONDITIONED)
    return variance, jnp.all(accurate) if accurate.ndim else accurate


@functools.partial(jax.jit, static_argnums=(0, 1))
def guarded(plan: Plan, then: Then, values: Sequence[jax.Array], args: Any) -> Any:
    """The raw form where it is accurate, the centred one where it is not."""
    variance, accurate = raw(plan, values)
    return lax.cond(
        accurate,
        lambda: then(lax.sqrt(variance), *args),
        lambda: centred(plan, then, values, args),
    )


def is_degenerate(mean: jax.Array, std: jax.Array, count: int) -> jax.Array:
    """Whether the std is but noise beside the mean."""
    return lax.le(std, times(lax.abs(mean), 1 / (DEGENERATE * math.sqrt(count))))


def moments(layer: Layer, reduce: Reduction) -> tuple[jax.Array, jax.Array]:
    """Mean and std, centred before squaring, in units of the largest magnitude."""
    unit = _unit(layer, reduce)
    rough = reduce.mean(layer, lambda x: _in_units(x, unit))

    def deviation(x: Slices) -> jax.Array:
        return lax.sub(_in_units(x, unit), _along(rough, x))

    # What the mean of millions of entries lacks for the roundings of its sum.
    rest = reduce.mean(layer, deviation)
    variance = lax.sub(reduce.mean(layer, lambda x: square(deviation(x))), square(rest))
    std = lax.sqrt(lax.max(variance, lax.full_like(variance, 0)))
    mean = lax.add(rough, rest)
    return lax.mul(mean, lax.convert_element_type(unit, mean.dtype)), lax.mul(std, unit)


def _unit(layer: Layer, reduce: Reduction) -> jax.Array:
    """A power of two near the largest magnitude: in this unit squares are in range.

    Dividing by it is exact. Half the magnitude is rounded, since the largest numbers
    would be rounded up to infinity.
    """
    half = times(lax.stop_gradient(reduce.max(layer, magnitude)), 0.5)
    exponent_bits = np.finfo(half.dtype).nexp
    unit = lax.reduce_precision(half, exponent_bits, mantissa_bits=0)
    zero, one = lax.full_like(unit, 0), lax.full_like(unit, 1)
    return lax.select(lax.eq(unit, zero), one, unit)


def _in_units(leaf: Slices, unit: jax.Array) -> jax.Array:
    # Dividing by a scalar in the loop saves compiling a kernel for its inverse.
    unit = lax.convert_element_type(unit, leaf.values.dtype)
    return lax.div(leaf.values, _along(unit, leaf))


def _along(statistic: jax.Array, leaf: Slices) -> jax.Array:
    return along(statistic, leaf.values.shape, leaf.stack_axis)
