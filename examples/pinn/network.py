"""A deep network without residual connections that returns derivatives with its values.

The hidden layers are one stacked leaf under a scan, so compile time does not grow with
depth. Every layer maps jets (operators.py). With no derivatives asked for, a jet is a
plain value, so one network serves both.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from examples.pinn import operators

Initializer = jax.nn.initializers.Initializer


class Layer(nn.Module):
    """An activation, if there is one, and an affine map.

    In this order the gradient of a layer needs nothing but the layer's input: what the
    activation makes of it is cheap to compute again.
    """

    width: int
    activation: operators.Activation | None
    kernel_init: Initializer
    sweep: operators.Sweep

    @nn.compact
    def __call__(self, jet: operators.Jet) -> operators.Jet:
        dtype = jet.value.dtype
        shape = (jet.value.shape[-1], self.width)
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), dtype)
        if self.activation is not None:
            jet = operators.activate(self.activation, jet, self.sweep.sums)
        return operators.linear(jet, kernel, bias)


class DeepNetwork(nn.Module):
    """Fields u(x), ... with `depth` hidden layers of `width` units in common.

    Coordinates are standardised as if uniform over the box from `lower` to `upper`.
    """

    depth: int
    width: int
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    activation: operators.Activation = jnp.tanh
    kernel_init: Initializer = nn.initializers.glorot_normal()
    fields: tuple[str, ...] = ("u",)
    offsets: tuple[float, ...] | None = None
    """Of each field; what the last layer returns is (u - offset) / unit."""
    units: tuple[float, ...] | None = None

    @nn.compact
    def __call__(
        self, points: jax.Array, sweep: operators.Sweep | None = None
    ) -> dict[str, jax.Array]:
        """The fields and the derivatives of a sweep, by name.

        Args:
          points: shape (n, dimension).
          sweep: the derivatives to take, of this network's fields; None for no
            derivatives.

        Returns:
          Arrays of shape (n,).
        """
        if sweep is None:
            sweep = operators.Sweep.of({}, self.fields)

        def layer(width, activation, name):
            return Layer(width, activation, self.kernel_init, sweep, name=name)

        dtype = points.dtype
        lower, upper = jnp.asarray(self.lower, dtype), jnp.asarray(self.upper, dtype)
        scale = math.sqrt(12) / (upper - lower)
        jet = sweep.start(points)._replace(value=points - (lower + upper) / 2)
        jet = jax.tree.map(lambda stream: stream * scale, jet)
        jet = layer(self.width, None, "first")(jet)
        if self.depth > 1:
            jet, _ = nn.scan(
                nn.remat(lambda module, jet, _: (module(jet), None), prevent_cse=False),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth - 1,
            )(layer(self.width, self.activation, "hidden"), jet, None)
        jet = layer(len(self.fields), self.activation, "last")(jet)
        if self.units is not None:
            units = jnp.asarray(self.units, dtype)
            jet = jax.tree.map(lambda stream: units * stream, jet)
        if self.offsets is not None:
            jet = jet._replace(value=jet.value + jnp.asarray(self.offsets, dtype))
        return sweep.read(jet)


def stack_axis(path: tuple[Any, ...], leaf: Any) -> int | None:
    """Tells StableGrad which leaves hold many layers, and along which axis."""
    del leaf
    return 0 if any(getattr(key, "key", None) == "hidden" for key in path) else None
