"""The layers of a gradient tree together with their scales."""

from typing import Any

import jax
import jax.numpy as jnp

from stablegrad_optax import _groups
from stablegrad_optax._forms import Then
from stablegrad_optax._reductions import AxisName, Slices
from stablegrad_optax._statistics import layer_statistics, scale_itself


def measure_layers(
    tree: Any,
    *,
    group_by: _groups.GroupBy = "layer",
    statistic: str = "std",
    is_weight: _groups.IsWeight | None = None,
    stack_axis: _groups.StackAxis | None = None,
    axis_name: AxisName | None = None,
    then: Then = scale_itself,
    args: Any = (),
) -> list[tuple[_groups.Layer, Any]]:
    """Each layer that has weights, and its scale: a scalar, or a vector over slices.

    With `then`, ``then(scale, *args)`` in place of the scale.
    """
    layers = _groups.find_layers(tree, group_by, is_weight, stack_axis)
    layers = [layer for layer in layers if layer.weights]
    leaves = jax.tree.leaves(tree)
    slices = [
        [
            Slices(jnp.asarray(leaves[w.index]), layer.stack_axis_of(w))
            for w in layer.weights
        ]
        for layer in layers
    ]
    results = layer_statistics(slices, statistic, axis_name, then, args)
    return list(zip(layers, results, strict=True))
