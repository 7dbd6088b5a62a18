"""Looking at layers: their scales while training, and how a tree is split."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stablegrad_optax import _layers


def layer_scales(grads: Any, **grouping: Any) -> dict[str, jax.Array]:
    r"""The scale :math:`\sigma_l` of each layer of a gradient tree.

    What :func:`stablegrad` divides by. It can be called inside ``jax.jit``, and serves
    as the measure of ``optax.snapshot`` and ``optax.monitor``.

    Args:
      grads: a pytree of gradients (or updates, or parameters).
      **grouping: ``group_by``, ``statistic``, ``is_weight``, ``stack_axis`` and
        ``axis_name``, as for :func:`stablegrad`.

    Returns:
      ``{"path/of/layer": scale}`` in the order of the tree, for layers with weights. A
      vector over the slices for a stacked layer, else a scalar; float32, or float64 for
      layers with float64 leaves. The root of the tree is ``"."``.

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
      >>> print({name: scale.round(2).tolist() for name, scale in scales.items()})
      {'hidden': [1.0, 4.0], 'in': 1.0}
    """
    options = _layers.Grouping(**grouping)
    return {
        layer.name: layer.scale(options)
        for layer in _layers.find_layers(grads, options)
        if layer.weights
    }


def tabulate(params: Any, **grouping: Any) -> str:
    """A table of the layers into which a tree is split, for checking the options.

    Args:
      params: a pytree of arrays or ``jax.ShapeDtypeStruct`` (``jax.eval_shape``).
      **grouping: as for :func:`layer_scales`. The statistic and the axis name do not
        change the table; they are taken so that one dict of options serves all.

    Returns:
      A table with one line for each leaf. In the role, the scale is taken from a
      ``weight``; other leaves of its layer are ``scaled``, and ``unchanged`` without.

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
    layers = _layers.find_layers(params, _layers.Grouping(**grouping))
    rows = [("layer", "leaf", "shape", "dtype", "role")]
    for layer in layers:
        name = layer.name
        for leaf in layer.members:
            path = _layers.path_name(leaf.path).removeprefix(f"{layer.name}/")
            shape = "x".join(map(str, np.shape(leaf.value))) or "scalar"
            dtype = jnp.dtype(_layers.dtype_of(leaf.value)).name
            of_other = "scaled" if layer.weights else "unchanged"
            role = "weight" if leaf.is_weight else of_other
            if leaf.stack_axis is not None:
                role += f", {leaf.length} slices on axis {leaf.stack_axis}"
            rows.append((name, path, shape, dtype, role))
            name = ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    members = [leaf for layer in layers for leaf in layer.members]
    summary = (
        f"{sum(layer.size for layer in layers)} layers, "
        f"{sum(layer.size for layer in layers if layer.weights)} with weights; "
        f"{sum(np.size(leaf.value) for leaf in members):,} elements"
    )
    if others := len(jax.tree.leaves(params)) - len(members):
        summary += f"; {others} other leaves unchanged"
    return "\n".join([*lines, summary])
