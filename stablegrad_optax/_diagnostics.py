"""Looking at layers: their scales while training, and how a tree is split."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence
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

    Runs of layers that differ by a number only, as in a deep network, are folded into
    one row. The statistic and the axis name do not change the table; they are taken
    so that one dict of options serves all functions.

    Args:
      params: a pytree of arrays or ``jax.ShapeDtypeStruct`` (``jax.eval_shape``).
      group_by, statistic, is_weight, stack_axis, axis_name: as for :func:`stablegrad`.

    Returns:
      A table with one line for each leaf. It holds the layer, the path within it,
      shape, dtype, and role. The scale is taken from a ``weight``; ``scaled``
      leaves take the gain of their layer; ``unchanged`` ones are in a layer without
      weights.

    Raises:
      ValueError: as :func:`stablegrad` at its first trace.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> dense = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}
      >>> print(tabulate({f"Dense_{i}": dense for i in range(64)}))
      layer                      leaf    shape  dtype    role
      Dense_0 ... Dense_63 (64)  bias    8      float32  scaled
                                 kernel  8x8    float32  weight
      64 layers, 64 with weights; 4,608 elements
    """
    del axis_name
    _scale.check_statistic(statistic)
    layers = _layers.find_layers(params, group_by, is_weight, stack_axis)
    rows = [("layer", "leaf", "shape", "dtype", "role")]
    elements = 0
    for run in _fold(layers):
        names = itertools.chain([_run_name(run)], itertools.repeat(""))
        described = map(dataclasses.astuple, _describe(run[0]))
        rows.extend((name, *row) for name, row in zip(names, described, strict=False))
    for layer in layers:
        elements += sum(math.prod(leaf.shape) for leaf in layer.members)
    number = sum(map(_slices, layers))
    weighted = sum(_slices(layer) for layer in layers if layer.weights)
    others = len(jax.tree.leaves(params)) - sum(len(la.members) for la in layers)
    summary = f"{number} layers, {weighted} with weights; {elements:,} elements"
    if others:
        leaves = "leaf" if others == 1 else "leaves"
        summary += f"; {others} {leaves} of other dtypes unchanged"
    return "\n".join([*_align(rows), summary])


@dataclasses.dataclass(frozen=True)
class _Row:
    leaf: str
    shape: str
    dtype: str
    role: str


def _slices(layer: _layers.Layer) -> int:
    """How many layers a row of the table stands for."""
    return 1 if layer.length is None else layer.length


def _describe(layer: _layers.Layer) -> list[_Row]:
    rows = []
    for leaf in layer.members:
        role = "weight" if leaf.is_weight else "scaled"
        if not layer.weights:
            role = "unchanged"
        axis = leaf.stack_axis
        if axis is not None:
            role += f", {leaf.length} slices on axis {axis}"
        name = _layers.path_name(leaf.path)
        name = name.removeprefix(f"{layer.name}/") if layer.name != "." else name
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        dtype = jnp.dtype(_layers.dtype_of(leaf.value)).name
        rows.append(_Row(name, shape, dtype, role))
    return rows


def _fold(layers: Iterable[_layers.Layer]) -> list[list[_layers.Layer]]:
    """Runs of layers that are alike but for one number, which counts up in equal steps.

    Flax dicts come as Dense_0, Dense_1, Dense_10, Dense_11, ..., so the layers that are
    alike are brought together and into their natural order first.
    """
    alike: dict[object, list[_layers.Layer]] = {}
    for layer in layers:
        rows = [
            dataclasses.replace(row, leaf=re.sub(r"\d+", "#", row.leaf))
            for row in _describe(layer)
        ]
        likeness = re.sub(r"\d+", "#", layer.name), tuple(rows)
        alike.setdefault(likeness, []).append(layer)
    runs: list[list[_layers.Layer]] = []
    for similar in alike.values():
        similar.sort(key=lambda layer: natural_order(layer.name))
        runs.append(similar[:1])
        for previous, layer in itertools.pairwise(similar):
            run, step = runs[-1], _step(previous.name, layer.name)
            goes_on = len(run) == 1 or step == _step(run[0].name, run[1].name)
            if step is not None and goes_on:
                run.append(layer)
            else:
                runs.append([layer])
    return runs


def _step(name: str, following: str) -> int | None:
    """By how much one number in the name goes up; None if others change as well."""
    numbers = zip(re.findall(r"\d+", name), re.findall(r"\d+", following), strict=True)
    changes = [int(after) - int(before) for before, after in numbers]
    changes = [change for change in changes if change]
    return changes[0] if len(changes) == 1 else None


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts Dense_2 before Dense_10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts]


def _run_name(run: Sequence[_layers.Layer]) -> str:
    """Such as "Dense_1 ... Dense_9 (9)", or "0, 2 ... 62 (32)" in steps of two."""
    if len(run) == 1:
        return run[0].name
    first, second, last = run[0].name, run[1].name, run[-1].name
    if _step(first, second) != 1:
        if len(run) == 2:
            return f"{first}, {second} (2)"
        first = f"{first}, {second}"
    return f"{first} ... {last} ({len(run)})"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
