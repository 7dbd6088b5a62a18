"""The layers of a gradient tree together with their scales."""

from typing import Any

import jax
import jax.numpy as jnp

from stablegrad_optax import _groups, _statistics


def measure_layers(
    tree: Any,
    *,
    group_by: _groups.GroupBy = "layer",
    statistic: str = "std",
    is_weight: _groups.IsWeight | None = None,
    stack_axis: _groups.StackAxis | None = None,
    axis_name: _statistics.AxisName | None = None,
) -> list[tuple[_groups.Layer, jax.Array]]:
    """Each layer that has weights, and its scale: a scalar, or a vector over slices."""
    layers = _groups.find_layers(tree, group_by, is_weight, stack_axis)
    layers = [layer for layer in layers if layer.weights]
    leaves = jax.tree.leaves(tree)
    slices = [
        [
            _statistics.Slices(jnp.asarray(leaves[w.index]), layer.stack_axis_of(w))
            for w in layer.weights
        ]
        for layer in layers
    ]
    scales = _statistics.layer_statistics(slices, statistic, axis_name)
    return list(zip(layers, scales, strict=True))
