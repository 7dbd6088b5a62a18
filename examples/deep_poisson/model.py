"""A deep tanh network and its Laplacian.

The hidden layers are one stacked leaf under a scan: compile time does not grow with
depth. There are no residual connections and no normalisation layers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Params = Any


class TanhLayer(nn.Module):
    """A dense layer and its activation, in the form that nn.scan takes."""

    width: int

    @nn.compact
    def __call__(self, x, _):
        dense = nn.Dense(
            self.width, kernel_init=nn.initializers.glorot_normal(), name="dense"
        )
        return jnp.tanh(dense(x)), None


class DeepNetwork(nn.Module):
    """u(x, y) with `depth` hidden layers of `width` tanh units."""

    depth: int
    width: int

    @nn.compact
    def __call__(self, points):
        glorot = nn.initializers.glorot_normal()
        x = jnp.tanh(nn.Dense(self.width, kernel_init=glorot, name="first")(points))
        hidden = nn.scan(
            TanhLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth - 1,
        )
        x, _ = hidden(self.width, name="hidden")(x, None)
        return nn.Dense(1, kernel_init=glorot, name="last")(x)[..., 0]


def stack_axis(path: tuple[Any, ...], leaf: Any) -> int | None:
    """Tells StableGrad which leaves hold many layers, and along which axis."""
    del leaf
    return 0 if any(getattr(key, "key", None) == "hidden" for key in path) else None


def value_and_laplacian(
    params: Params, points: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """U and Δu of DeepNetwork in one sweep through the layers.

    Each layer maps values v, first derivatives d (one for each direction) and the sum s
    of pure second derivatives: a linear layer maps all three alike, and tanh as

        v -> t = tanh v,   d -> t' d,   s -> t' s + t'' Σ d²

    with t' = 1 - t² and t'' = -2 t t'.

    Args:
      params: the variables of DeepNetwork.
      points: shape (n, 2).

    Returns:
      u and Δu, both of shape (n,).
    """
    layers = params["params"]

    def linear(weights, state):
        v, d, s = state
        kernel = weights["kernel"]
        return v @ kernel + weights["bias"], d @ kernel, s @ kernel

    def tanh(state):
        v, d, s = state
        t = jnp.tanh(v)
        slope = 1 - t * t
        return t, slope * d, slope * (s - 2 * t * jnp.sum(d * d, axis=0))

    def hidden(state, weights):
        return tanh(linear(weights["dense"], state)), None

    dimensions = points.shape[-1]
    directions = jnp.eye(dimensions)[:, None, :]
    directions = jnp.broadcast_to(directions, (dimensions, *points.shape))
    state = (points, directions, jnp.zeros_like(points))
    state = tanh(linear(layers["first"], state))
    state, _ = jax.lax.scan(hidden, state, layers["hidden"])
    value, _, laplacian = linear(layers["last"], state)
    return value[:, 0], laplacian[:, 0]
