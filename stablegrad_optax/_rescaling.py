"""What is done to a leaf: multiplied by ρ/σ, for any ρ and σ that the dtype holds.

For ρ = 1 the gain is 1/σ, one scalar for each layer: all that XLA has to compute
between a layer's sums and the optimizer's pass over it. For another ρ it may leave the
range of the dtype where the result does not (σ = 1e30, ρ = 1e-30), so it is kept as two
factors, each near its root: x · first · second passes through nothing that is larger or
smaller than both x and the result. The first is a power of two, which is exact.

Products of x with scalars are what XLA fuses into the optimizer; a quotient it writes
to memory first.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stablegrad_optax._reductions import along


class Gain(NamedTuple):
    """γ = factor / divisor = first · second: scalars, or vectors over the slices.

    The factors are None where they are 1.
    """

    divisor: jax.Array
    factor: jax.Array | None
    first: jax.Array | None
    second: jax.Array


def gain(
    scale: jax.Array, reference: jax.Array | None, max_gain: jax.Array | None
) -> Gain:
    """min(ρ/σ, max_gain), and 1 where σ is zero. A reference of None is 1."""
    one = lax.full_like(scale, 1)
    is_zero = lax.eq(scale, lax.full_like(scale, 0))
    if reference is None and max_gain is None:
        return _gain(lax.select(is_zero, one, scale), None)
    divisor = scale
    factor = one if reference is None else _like(scale, reference)
    if max_gain is not None:
        bound = _like(scale, max_gain)
        is_bound = lax.gt(factor, lax.mul(bound, scale))
        divisor = lax.select(is_bound, one, divisor)
        factor = lax.select(is_bound, bound, factor)
    return _gain(lax.select(is_zero, one, divisor), lax.select(is_zero, one, factor))


def _gain(divisor: jax.Array, factor: jax.Array | None) -> Gain:
    info = np.finfo(divisor.dtype)
    # The largest σ is that of complex entries near it: σ itself is infinite then, and
    # NaN where an entry is.
    least, largest = (lax.full_like(divisor, x) for x in (info.tiny, info.max))
    d = lax.clamp(least, lax.stop_gradient(divisor), largest)
    if factor is None:
        # The inverse of σ > 8.5e37 is subnormal, which is zero to XLA.
        inverse = lax.max(lax.div(lax.full_like(d, 1), d), least)
        return Gain(divisor, None, None, inverse)
    f = lax.stop_gradient(factor)
    # Rounded down, so that no product with it overflows where the result does not.
    root = lax.mul(lax.mul(lax.sqrt(f), lax.rsqrt(d)), lax.full_like(d, 0.75))
    first = lax.reduce_precision(root, info.nexp, mantissa_bits=0)
    # A reference of zero, or one so small that the result is.
    is_zero = lax.lt(first, lax.full_like(first, info.tiny))
    first = lax.select(is_zero, lax.full_like(first, 1), first)
    return Gain(divisor, factor, first, lax.div(lax.div(f, first), d))


def _like(scale: jax.Array, scalar: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(scalar):  # optax.inject_hyperparams on a complex tree
        scalar = lax.real(scalar)
    return lax.full_like(scale, lax.convert_element_type(scalar, scale.dtype))


@functools.partial(jax.jit, static_argnums=(2, 3))
def rescale(
    leaf: jax.Array, gain: Gain, stack_axis: int | None, saturate: bool
) -> jax.Array:
    """The leaf times its gain in the leaf's dtype, computed in that of the gain.

    With `saturate`, a finite entry stays finite where the result leaves the leaf's
    dtype; a NaN or Inf becomes NaN.
    """
    return _rescale(leaf, gain, stack_axis, saturate)


# Inside the jit, whose cache saves tracing it for each leaf.
@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _rescale(
    leaf: jax.Array, gain: Gain, stack_axis: int | None, saturate: bool
) -> jax.Array:
    if jnp.iscomplexobj(leaf):
        return lax.complex(
            rescale(lax.real(leaf), gain, stack_axis, saturate),
            rescale(lax.imag(leaf), gain, stack_axis, saturate),
        )
    wide = lax.convert_element_type(leaf, gain.second.dtype)
    factors = (gain.second,) if gain.first is None else (gain.first, gain.second)
    scaled = wide
    for factor in factors:
        scaled = lax.mul(scaled, along(factor, leaf.shape, stack_axis))
    if saturate:
        limit = scaled.dtype.type(float(jnp.finfo(leaf.dtype).max))
        # The product with zero keeps what is not finite visible, for less code to
        # compile than a select: it is in every bias.
        nothing = lax.mul(wide, lax.full_like(wide, 0))
        scaled = lax.add(lax.clamp(-limit, scaled, limit), nothing)
    return lax.convert_element_type(scaled, leaf.dtype)


@_rescale.defjvp
def _rescale_jvp(stack_axis, saturate, primals, tangents):
    """Y = x f/d: dy = dx f/d + x/d df - y dd/d.

    Differentiating the product of factors would square the gain, which leaves the range
    of the dtype.
    """
    (leaf, gain), (leaf_dot, gain_dot) = primals, tangents
    result = rescale(leaf, gain, stack_axis, saturate)

    def times(x, scalar):
        scalar = along(scalar, leaf.shape, stack_axis).astype(x.dtype)
        return lax.mul(x, scalar)

    result_dot = rescale(leaf_dot, gain, stack_axis, False)
    result_dot -= times(result, gain_dot.divisor / gain.divisor)
    if gain.factor is not None:
        over_divisor = rescale(leaf, _gain(gain.divisor, None), stack_axis, False)
        result_dot += times(over_divisor, gain_dot.factor)
    if saturate:
        is_within = lax.abs(result) < result.dtype.type(jnp.finfo(result.dtype).max)
        result_dot = lax.select(is_within, result_dot, lax.full_like(result_dot, 0))
    return result, result_dot
