r"""The scale σ of a set of gradient leaves, and the gain γ = ρ / σ.

With N elements x, pooled over the leaves, two sums in one pass over them give

    q = Σ |x|²        c = |Σ x|² / (N q)        σ² = q / N · max(1 - c, 1/256)

q / N is the mean square, and c, from 0 to 1, the share that the mean has in it. Where
the elements are nearly equal, 1 - c is rounding error: the floor keeps the gain
continuous and bounded there.

Elements are squared as they are, so in float32 σ is right where their rms is between
1e-18 and 1e+15. Smaller squares may underflow to zero: σ is 0, and the gain 1. Larger
ones overflow: σ is infinite, and the gain 0. There is no factor to keep them in range,
since XLA moves constant factors out of sums and squares.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

AxisName = str | Sequence[str]


def scale(
    leaves: Sequence[jax.Array],
    statistic: str = "std",
    axis_name: AxisName | None = None,
    stack_axes: Sequence[int | None] | None = None,
) -> jax.Array:
    """σ of leaves that are not all empty, over the mesh axes of `axis_name`.

    A scalar, or a vector over the slices along the stack axes of the leaves; float32,
    or float64 if a leaf is float64 or complex128. Zero where all elements are zero, NaN
    where one is NaN, and infinite where one is or the squares overflow.
    """
    if stack_axes is None:
        stack_axes = [None] * len(leaves)
    total = functools.partial(_total, stack_axes=stack_axes, axis_name=axis_name)
    count = sum(
        math.prod(n for a, n in enumerate(x.shape) if a != axis)
        for x, axis in zip(leaves, stack_axes, strict=True)
    )
    if axis_name is not None:
        count *= lax.psum(1, axis_name)
    leaves = in_accumulation_dtype(leaves)
    squares = [functools.reduce(lax.add, map(lax.square, parts(x))) for x in leaves]
    q = total(squares)
    is_zero = q == 0
    # The derivative of the root is not finite at zero.
    root = jnp.sqrt(jnp.where(is_zero, 1, q))
    sigma = jnp.where(is_zero, 0, root * count**-0.5)
    # The scale of a single element is its magnitude.
    if statistic == "std" and count > 1:
        # Of the real part, and of the imaginary one.
        sums = map(total, zip(*map(parts, leaves), strict=True))
        share = sum(lax.square(x / root) for x in sums) * (1 / count)
        spread = jnp.maximum(1 - share, 1 / 256)
        # Infinite where the sums are, whatever their ratio.
        sigma *= jnp.sqrt(jnp.where(jnp.isinf(q), 1, spread))
    return sigma


def gain(
    sigma: jax.Array,
    reference: ArrayLike,
    max_gain: ArrayLike | None = None,
    of_zero: float = 1.0,
) -> jax.Array:
    """min(ρ / σ, max_gain) in the dtype of σ, always finite; `of_zero` where σ is 0."""
    is_zero = sigma == 0
    largest = float(jnp.finfo(sigma.dtype).max)
    # Elements are at most 16 √N σ, and so in range times any gain.
    rho = jnp.clip(real(reference, sigma.dtype), 0, largest / 2**32)
    # XLA multiplies by the inverse of a constant, which has to be a normal number.
    bound = jnp.asarray(largest / 8, sigma.dtype)
    if max_gain is not None:
        bound = jnp.clip(real(max_gain, sigma.dtype), 0, bound)
    divisor = jnp.where(is_zero, 1, jnp.maximum(sigma, rho / bound))
    # The division comes last: XLA does not repeat it in every leaf that takes the gain.
    return jnp.where(is_zero, of_zero, rho) / divisor


def rescale(
    leaf: jax.Array, gain: jax.Array, stack_axis: int | None, is_weight: bool
) -> jax.Array:
    """The leaf times its gain in the leaf's dtype, computed in the wider one.

    A finite element stays finite. Those of a weight can only leave the range of a dtype
    that is smaller than that of the gain.
    """
    axes = () if stack_axis is None else (stack_axis,)
    factor = lax.broadcast_in_dim(gain, leaf.shape, axes)

    def rescaled(x):
        wide = np.promote_types(x.dtype, factor.dtype)  # of a bias, perhaps float64
        product = x.astype(wide) * factor.astype(wide)
        if not is_weight or is_narrow(x.dtype, wide):
            product = jnp.where(jnp.isfinite(x), clip_to(x.dtype, product), product)
        return product.astype(x.dtype)

    return on_real_parts(rescaled, leaf)


def is_narrow(dtype: jnp.dtype, than: jnp.dtype) -> bool:
    """Whether the range of a dtype is smaller than that of another, as float16's is."""
    return jnp.finfo(dtype).maxexp < jnp.finfo(than).maxexp


def clip_to(dtype: jnp.dtype, x: jax.Array) -> jax.Array:
    """Clips what is beyond the range of the dtype."""
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(x, -limit, limit)


def on_real_parts(f: Callable[..., jax.Array], *leaves: jax.Array) -> jax.Array:
    """Applies f to real leaves, or to the real parts and to the imaginary parts."""
    results = [f(*part) for part in zip(*map(parts, leaves), strict=True)]
    return results[0] if len(results) == 1 else lax.complex(*results)


def parts(x: jax.Array) -> list[jax.Array]:
    """The real and imaginary parts: XLA's complex sums are slow on a CPU."""
    return [lax.real(x), lax.imag(x)] if jnp.iscomplexobj(x) else [x]


def in_accumulation_dtype(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """The leaves in float32 or complex64, or in double precision if one of them is."""
    # By NumPy, since strict promotion of dtypes in JAX would forbid it.
    dtypes = [x.dtype for x in leaves]
    dtype = functools.reduce(np.promote_types, dtypes, np.dtype(np.float32))
    return [x.astype(dtype) for x in leaves]


def real(scalar: ArrayLike, dtype: jnp.dtype) -> jax.Array:
    """The scalar in a real dtype."""
    # Complex from optax.inject_hyperparams on a complex tree.
    return jnp.real(scalar).astype(dtype)


def _total(
    leaves: Sequence[jax.Array],
    stack_axes: Sequence[int | None],
    axis_name: AxisName | None,
) -> jax.Array:
    sums = [
        jnp.sum(x, [a for a in range(x.ndim) if a != axis])
        for x, axis in zip(leaves, stack_axes, strict=True)
    ]
    total = sums[0]
    if len(sums) > 1:
        # A chain of sums would be fused into every consumer of the scale, and take
        # minutes to compile; the barrier keeps them apart.
        total = jnp.sum(lax.optimization_barrier(jnp.stack(sums)), axis=0)
    return total if axis_name is None else lax.psum(total, axis_name)
