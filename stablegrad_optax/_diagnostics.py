"""Looking at layers: their scales while training, and how a tree is split."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from stablegrad_optax import _layers, _scale
from stablegrad_optax._scale import AxisName


def layer_scales(
    grads: Any,
    *,
    group_by: _layers.GroupBy = "layer",
    statistic: str = "std",
    is_weight: _layers.IsWeight | None = None,
    stack_axis: _layers.StackAxis | None = None,
    axis_name: AxisName | None = None,
) -> dict[str, jax.Array]:
    r"""The scale :math:`\sigma_l` of each layer of a gradient tree.

    What :func:`stablegrad` divides by, under the same options. It can be called inside
    ``jax.jit``, and serves as the measure of ``optax.snapshot`` and ``optax.monitor``.

    Args:
      grads: a pytree of gradients (or updates, or parameters).
      group_by, statistic, is_weight, stack_axis, axis_name: as for :func:`stablegrad`.

    Returns:
      ``{"path/of/layer": scale}`` in the order of the tree. The scale is a scalar for
      each layer that has weights, a vector over the slices for a stacked one; float32,
      or float64 for layers with float64 leaves. The root of the tree is ``"."``.

    Raises:
      ValueError: as :func:`stablegrad` at its first trace.

    Example:
      >>> import jax.numpy as jnp
      >>> grads = {
      ...     "in": {"kernel": jnp.array([[1., 3.]]), "bias": jnp.array([9., 9.])},
      ...     "hidden": {"kernel": jnp.array([[[2.], [4.]], [[0.], [8.]]])},
      ... }
      >>> scales = layer_scales(
      ...     grads, stack_axis=lambda path, leaf: 0 if leaf.ndim == 3 else None
      ... )
      >>> print(scales["in"], scales["hidden"])
      1.0 [1. 4.]
    """
    _scale.check_statistic(statistic)
    return {
        layer.name: layer.scale(statistic, axis_name)
        for layer in _layers.find_layers(grads, group_by, is_weight, stack_axis)
        if layer.weights
    }


def tabulate(
    params: Any,
    *,
    group_by: _layers.GroupBy = "layer",
    statistic: str = "std",
    is_weight: _layers.IsWeight | None = None,
    stack_axis: _layers.StackAxis | None = None,
    axis_name: AxisName | None = None,
) -> str:
    """A table of the layers into which a tree is split, for checking the options.

    The statistic and the axis name do not change the table; they are taken so that one
    dict of options serves all functions.

    Args:
      params: a pytree of arrays or ``jax.ShapeDtypeStruct`` (``jax.eval_shape``).
      group_by, statistic, is_weight, stack_axis, axis_name: as for :func:`stablegrad`.

    Returns:
      A table with one line for each leaf: its layer, the path within it, shape, dtype
      and role. The scale is taken from a ``weight``; ``scaled`` leaves take the gain of
      their layer; ``unchanged`` ones are in a layer without weights.

    Raises:
      ValueError: as :func:`stablegrad` at its first trace.

    Example:
      >>> import jax.numpy as jnp
      >>> dense = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}
      >>> print(tabulate({"Dense_0": dense, "LayerNorm_0": {"scale": jnp.ones(8)}}))
      layer        leaf    shape  dtype    role
      Dense_0      bias    8      float32  scaled
                   kernel  8x8    float32  weight
      LayerNorm_0  scale   8      float32  unchanged
      2 layers, 1 with weights; 80 elements
    """
    del axis_name
    _scale.check_statistic(statistic)
    layers = _layers.find_layers(params, group_by, is_weight, stack_axis)
    rows = [("layer", "leaf", "shape", "dtype", "role")]
    for layer in layers:
        name = layer.name
        for leaf in layer.members:
            rows.append((name, *_describe(layer, leaf)))
            name = ""
    with_weights = [layer for layer in layers if layer.weights]
    elements = sum(math.prod(leaf.shape) for la in layers for leaf in la.members)
    summary = (
        f"{_count(layers)} layers, {_count(with_weights)} with weights; "
        f"{elements:,} elements"
    )
    others = len(jax.tree.leaves(params)) - sum(len(la.members) for la in layers)
    if others:
        summary += f"; {others} other leaves unchanged"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, summary])


def _describe(layer: _layers.Layer, leaf: _layers.Leaf) -> tuple[str, str, str, str]:
    """Path within the layer, shape, dtype and role."""
    path = _layers.path_name(leaf.path).removeprefix(f"{layer.name}/")
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    role = "weight" if leaf.is_weight else "scaled" if layer.weights else "unchanged"
    if leaf.stack_axis is not None:
        role += f", {leaf.length} slices on axis {leaf.stack_axis}"
    return path, shape, jnp.dtype(_layers.dtype_of(leaf.value)).name, role


def _count(layers: Sequence[_layers.Layer]) -> int:
    """How many layers they are, stacked ones one by one."""
    return sum(1 if layer.length is None else layer.length for layer in layers)
