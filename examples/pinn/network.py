"""A deep network without residual connections, whose derivatives come with its values.

The hidden layers are one stacked leaf under a scan, so compile time does not grow with
depth. Every layer maps jets (operators.py); with no derivatives asked for these are
plain values, so there is one network and not two.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from examples.pinn import operators

Initializer = jax.nn.initializers.Initializer


class Layer(nn.Module):
    """An affine map of jets, behind an activation if there is one.

    In this order a layer's input is all that its gradient needs to be kept: what the
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
    """u(x) with `depth` hidden layers of `width` units.

    Coordinates are standardised as if uniform over the box from `lower` to `upper`.
    """

    depth: int
    width: int
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    activation: operators.Activation = jnp.tanh
    kernel_init: Initializer = nn.initializers.glorot_normal()

    @nn.compact
    def __call__(
        self, points: jax.Array, sweep: operators.Sweep = operators.NOTHING
    ) -> dict[str, jax.Array]:
        """The value "u" and the sweep's derivatives, by name.

        Args:
          points: shape (n, dimension).
          sweep: the operators to apply; none by default.

        Returns:
          Arrays of shape (n,).
        """

        def layer(width, activation, name):
            return Layer(width, activation, self.kernel_init, sweep, name=name)

        jet = self._standardised(sweep.start(points))
        jet = layer(self.width, None, "first")(jet)
        if self.depth > 1:
            jet, _ = nn.scan(
                nn.remat(lambda module, jet, _: (module(jet), None), prevent_cse=False),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth - 1,
            )(layer(self.width, self.activation, "hidden"), jet, None)
        jet = layer(1, self.activation, "last")(jet)
        return {name: x[..., 0] for name, x in sweep.read(jet).items()}

    def _standardised(self, jet: operators.Jet) -> operators.Jet:
        dtype = jet.value.dtype
        lower, upper = jnp.asarray(self.lower, dtype), jnp.asarray(self.upper, dtype)
        scale = math.sqrt(12) / (upper - lower)
        centred = jet.value - (lower + upper) / 2
        return operators.Jet(
            centred * scale,
            tuple(stream * scale for stream in jet.first),
            tuple(stream * scale for stream in jet.second),
        )


def stack_axis(path: tuple[Any, ...], leaf: Any) -> int | None:
    """Tells StableGrad which leaves hold many layers, and along which axis."""
    del leaf
    return 0 if any(getattr(key, "key", None) == "hidden" for key in path) else None
