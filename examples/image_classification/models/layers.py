"""The layers that the models are made of.

All are called as layer(x, train=train), images being [n, h, w, channels].
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from examples.image_classification.models.initialization import (
    Initialization,
    Initializer,
    gain_of,
)
from examples.image_classification.models.normalization import NormFactory
from stablegrad_optax.initializers import Activation


@dataclasses.dataclass(frozen=True)
class Options:
    """What models of every family can be asked for; build() says what it means."""

    num_classes: int
    in_channels: int
    width_multiplier: float
    small_images: bool
    stochastic_depth: float
    initialization: Initialization

    def width(self, channels: int) -> int:
        return scaled_width(channels, self.width_multiplier)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes layers; holds what all those of a model have in common."""

    norm: NormFactory
    dtype: Any
    rngs: nnx.Rngs

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activation: Activation | None = None,
        initializer: Initializer | None = None,
    ) -> "ConvNorm":
        """A ConvNorm; initialised by what follows it, unless told otherwise."""
        conv = nnx.Conv(
            in_channels,
            out_channels,
            (kernel_size, kernel_size),
            strides=(stride, stride),
            # Alike on both sides: "SAME" is not, where the stride is 2.
            padding=kernel_size // 2,
            feature_group_count=in_channels if depthwise else 1,
            use_bias=False,
            kernel_init=initializer or gain_of(activation),
            dtype=self.dtype,
            rngs=self.rngs,
        )
        return ConvNorm(conv, self.norm(out_channels, rngs=self.rngs), activation)

    def squeeze_excitation(
        self, channels: int, hidden_channels: int
    ) -> "SqueezeExcitation":
        return SqueezeExcitation(
            self.linear(channels, hidden_channels, nnx.silu),
            self.linear(hidden_channels, channels),
        )

    def linear(
        self, in_features: int, out_features: int, activation: Activation | None = None
    ) -> nnx.Linear:
        """In float32: these work on means over pixels, and so cost next to nothing."""
        return nnx.Linear(
            in_features,
            out_features,
            kernel_init=gain_of(activation),
            dtype=jnp.float32,
            rngs=self.rngs,
        )


class ConvNorm(nnx.Module):
    """A convolution, the norm, an activation if there is one.

    The convolution has no bias, with a norm or without: batch normalisation would
    subtract it again, and a network without normalisation is to differ from one with it
    by the norms alone.
    """

    def __init__(self, conv: nnx.Conv, norm: Any, activation: Activation | None):
        self.conv = conv
        self.norm = norm
        self.activation = activation

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.norm(self.conv(x), train=train)
        return x if self.activation is None else self.activation(x)


class SqueezeExcitation(nnx.Module):
    """Multiplies each channel by a gate, a function of the means of all channels.

    Its two layers have biases, and no norm follows them: so they were published.
    """

    def __init__(self, squeeze: nnx.Linear, excite: nnx.Linear):
        self.squeeze = squeeze
        self.excite = excite

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        means = pixel_means(x)
        gate = nnx.sigmoid(self.excite(nnx.silu(self.squeeze(means))))
        return x * gate[:, None, None, :].astype(x.dtype)


class MaxPool(nnx.Module):
    """Over 3 x 3 pixels, with a stride of 2."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def pixel_means(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def scaled_width(channels: int, multiplier: float) -> int:
    """Rounded to a multiple of 8, which suits hardware, where there are as many."""
    scaled = channels * multiplier
    return 8 * int(scaled / 8 + 0.5) or max(1, round(scaled))
