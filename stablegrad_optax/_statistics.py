"""The scale of each layer: which form of it where, and its derivative.

Large layers take the raw form, which reads the gradient once, and where that is not
accurate a `lax.cond` takes the centred form (see `_forms.py`). Under `vmap` the
condition becomes a select, which is as right and reads more. Small layers do without a
condition: the wide form on a CPU, the centred one elsewhere.

On a CPU each large layer has a condition of its own, so that the optimizer's pass over
a layer starts while its gradient is still in the cache. For the same reason what is
wanted of the scale, the gain, is computed inside the condition (`then`): each step
between the sums and the optimizer lets the sums of other layers pass ahead. On a GPU a
condition costs a round trip to the host, so all layers share one.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stablegrad_optax import _forms
from stablegrad_optax._forms import Plan, Then
from stablegrad_optax._reductions import AxisName, Layer, Slices, along, real

STATISTICS = ("std", "rms")

# The leaves of a layer with no more entries than this stay in the cache between the
# reads of the centred form (float32: 64 KiB).
_SMALL_LAYER = 2**14


def check_statistic(statistic: str) -> None:
    """Raises ValueError unless `statistic` is the name of a statistic."""
    if statistic not in STATISTICS:
        raise ValueError(
            f"statistic must be one of {', '.join(map(repr, STATISTICS))}, "
            f"got {statistic!r}."
        )


def scale_itself(scale: jax.Array) -> jax.Array:
    """The scale and nothing else: the default of `then`."""
    return scale


def layer_statistics(
    layers: Sequence[Layer],
    statistic: str = "std",
    axis_name: AxisName | None = None,
    then: Then = scale_itself,
    args: Any = (),
) -> list[Any]:
    """The scale of each layer: a scalar, or a vector over the slices if it is stacked.

    float32, or float64 for layers with float64 or complex128 leaves. NaN where an entry
    is not finite, zero where all entries are zero.

    Args:
      layers: their weight leaves.
      statistic: "std" or "rms".
      axis_name: mesh axes over which the leaves are sharded.
      then: a differentiable function at the top level of a module; each layer's result
        is ``then(scale, *args)``.
      args: a tuple of pytrees of arrays.
    """
    check_statistic(statistic)
    if axis_name is not None and not isinstance(axis_name, str):
        axis_name = tuple(axis_name)
    layers = [_in_accumulation_dtype(layer) for layer in layers]
    plans = tuple(
        Plan(
            statistic,
            tuple(leaf.stack_axis for leaf in layer),
            axis_name,
            sum(leaf.values.size for leaf in layer) <= _SMALL_LAYER,
        )
        for layer in layers
    )
    values = [[leaf.values for leaf in layer] for layer in layers]
    return _results(plans, then, values, args)


def _in_accumulation_dtype(layer: Layer) -> list[Slices]:
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


# The condition is jitted, so that outside of jit it is not compiled anew each time.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
@functools.partial(jax.jit, static_argnums=(0, 1))
def _results(plans: tuple[Plan, ...], then: Then, values: Any, args: Any) -> list[Any]:
    if not plans:
        return []
    return lax.platform_dependent(
        values,
        args,
        cpu=functools.partial(_layer_by_layer, plans, then),
        default=functools.partial(_all_layers, plans, then),
    )


def _layer_by_layer(plans: Sequence[Plan], then: Then, values: Any, args: Any):
    """For a CPU: no layer waits for another one."""
    results = []
    for plan, x in zip(plans, values, strict=True):
        if not plan.is_small:
            form = _forms.guarded
        elif np.finfo(x[0].dtype).bits == 32:
            form = _forms.wide
        else:
            form = _forms.centred
        results.append(form(plan, then, x, args))
    return results


def _all_layers(plans: Sequence[Plan], then: Then, values: Any, args: Any):
    """For an accelerator: one condition for all layers, however many."""
    layers = list(zip(plans, values, strict=True))
    results: dict[int, Any] = {}
    large = []
    for i, (plan, x) in enumerate(layers):
        if plan.is_small:
            results[i] = _forms.centred(plan, then, x, args)
        else:
            large.append(i)
    if large:
        variances, accurate = zip(*(_forms.raw(*layers[i]) for i in large), strict=True)

        def centred(i: int):
            plan, x = layers[i]
            return _forms.centred(plan, then, x, args)

        of_large = lax.cond(
            functools.reduce(lax.bitwise_and, accurate),
            lambda: [then(lax.sqrt(variance), *args) for variance in variances],
            lambda: [centred(i) for i in large],
        )
        results.update(zip(large, of_large, strict=True))
    return [results[i] for i in range(len(layers))]


@_results.defjvp
def _results_jvp(plans, then, primals, tangents):
    (values, args), (value_dots, arg_dots) = primals, tangents
    scales = _results(plans, scale_itself, values, ())
    results, result_dots = [], []
    for plan, x, dx, scale in zip(plans, values, value_dots, scales, strict=True):
        scale_dot = _scale_dot(plan, plan.layer(x), plan.layer(dx), scale)
        result, result_dot = jax.jvp(then, (scale, *args), (scale_dot, *arg_dots))
        results.append(result)
        result_dots.append(result_dot)
    return results, result_dots


def _scale_dot(plan: Plan, layer: Layer, layer_dot: Layer, scale: jax.Array):
    """The derivative dσ = Σ Re(conj(x - c) dx) / (N σ).

    c is the mean for the std, and zero for the rms. Written with (x - c) / σ, and zero
    at σ = 0, it stays in range; differentiating the primal code would not, and would
    give NaN at zero.
    """
    reduce = plan.reduce
    mean, std = _forms.moments(layer, reduce)
    centre = lax.full_like(mean, 0)
    if plan.statistic == "std":
        is_rms = _forms.is_degenerate(mean, std, reduce.count(layer))
        centre = lax.select(is_rms, centre, mean)
    one = lax.full_like(scale, 1)
    inverse = lax.select(scale > 0, one / lax.select(scale > 0, scale, one), 0 * one)

    def score(leaf: Slices) -> jax.Array:
        """conj(x - c) / σ."""
        shape, axis = leaf.values.shape, leaf.stack_axis
        deviation = leaf.values - along(centre, shape, axis)
        if jnp.iscomplexobj(deviation):
            deviation = lax.conj(deviation)
        return deviation * along(inverse, shape, axis).astype(deviation.dtype)

    terms = [
        Slices(real(score(x) * dx.values), x.stack_axis)
        for x, dx in zip(layer, layer_dot, strict=True)
    ]
    return reduce.mean(terms)
