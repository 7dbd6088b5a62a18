"""The layers that the models are made of, and their initial weights.

All are called as layer(x, train=train), images being [n, h, w, channels].

Initially every layer keeps the second moment of activations at one: a convolution with
an activation behind it takes `variance_preserving(activation)`. Where nothing follows
(the end of a residual branch, the projection of a shortcut, the classifier) that is the
gain of the identity. The last layer of a squeeze-and-excitation gate has it too, so
that sigmoid(z) starts in its linear range; the convolution after the gate makes up for
the factor of about 1/2 with `variance_preserving(sigmoid)`. Biases start at zero.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from examples.image_classification.config import Config
from stablegrad_optax.initializers import Activation, variance_preserving

Initializer = jax.nn.initializers.Initializer


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of one model."""

    config: Config
    rngs: nnx.Rngs
    num_classes: int
    in_channels: int = 3
    small_images: bool = False
    """A stem that keeps the size of images of about 32 pixels."""
    epsilon: float = 1e-5
    """Of BatchNorm."""

    @property
    def dtype(self) -> Any:
        """Of the computation; parameters, statistics and logits are float32."""
        return jnp.dtype(self.config.dtype)

    def width(self, channels: int) -> int:
        """Channels rounded to a multiple of 8, which suits hardware; below 8 to one."""
        scaled = channels * self.config.width_multiplier
        return 8 * int(scaled / 8 + 0.5) or max(1, round(scaled))

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
        """A ConvNorm, by default initialised for the activation that follows."""
        conv = nnx.Conv(
            in_channels,
            out_channels,
            (kernel_size, kernel_size),
            strides=(stride, stride),
            # The same on both sides, unlike "SAME" with a stride of 2.
            padding=kernel_size // 2,
            feature_group_count=in_channels if depthwise else 1,
            use_bias=False,
            kernel_init=initializer or gain_of(activation),
            dtype=self.dtype,
            rngs=self.rngs,
        )
        norm = None
        if self.config.norm == "batch":
            # Scale and bias start at constants. Not the model's rngs, so that a seed
            # gives the same convolutions with BatchNorm and without.
            norm = nnx.BatchNorm(
                out_channels,
                momentum=0.9,
                epsilon=self.epsilon,
                dtype=jnp.float32,
                rngs=nnx.Rngs(0),
            )
        return ConvNorm(conv, norm, activation)

    def linear(
        self, in_features: int, out_features: int, activation: Activation | None = None
    ) -> nnx.Linear:
        """In float32, at little cost: its inputs are means over pixels."""
        return nnx.Linear(
            in_features,
            out_features,
            kernel_init=gain_of(activation),
            dtype=jnp.float32,
            rngs=self.rngs,
        )

    def drop_rates(self, num_blocks: int, published: float) -> list[float]:
        """Rising linearly from 0 at the first block to nearly the given rate."""
        rate = self.config.stochastic_depth
        rate = published if rate is None else rate
        return [rate * index / num_blocks for index in range(num_blocks)]

    def branch_end(
        self, num_branches: int, activation: Activation | None = None
    ) -> Initializer:
        """Initialises the last convolution of one of this many residual branches.

        The activation is the one behind it, or that of the gate before it. A branch is
        as large as its shortcut, so that without normalisation second moments may
        double with each block. "depth-scaled" branches add L times 1/L.
        """
        initializer = gain_of(activation)
        if self.config.initialization == "variance-preserving":
            return initializer
        return lambda *args: num_branches**-0.5 * initializer(*args)


@functools.cache
def gain_of(activation: Activation | None) -> Initializer:
    """variance_preserving, where None stands for the identity."""
    return variance_preserving(nnx.identity if activation is None else activation)


class ConvNorm(nnx.Module):
    """A convolution, BatchNorm or nothing, an activation if there is one.

    The convolution never has a bias: BatchNorm would subtract it, and networks with and
    without BatchNorm shall differ in nothing else.
    """

    def __init__(self, conv: nnx.Conv, norm: nnx.BatchNorm | None, activation: Any):
        self.conv = conv
        self.norm = norm
        self.activation = activation

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.conv(x)
        if self.norm is not None:
            # Always in float32: bfloat16 would round the running averages.
            x = self.norm(x, use_running_average=not train).astype(x.dtype)
        return x if self.activation is None else self.activation(x)


class SqueezeExcitation(nnx.Module):
    """Multiplies each channel by a gate, a function of the means of all channels.

    As published, its two layers have biases and no norm follows them.
    """

    def __init__(self, layers: Layers, channels: int, hidden_channels: int):
        self.squeeze = layers.linear(channels, hidden_channels, nnx.silu)
        self.excite = layers.linear(hidden_channels, channels)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        gate = nnx.sigmoid(self.excite(nnx.silu(self.squeeze(pixel_means(x)))))
        return x * gate[:, None, None, :].astype(x.dtype)


class MaxPool(nnx.Module):
    """Over 3 x 3 pixels, with a stride of 2."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Block(nnx.Module):
    """activation(shortcut(x) + branch(x)), or the branch alone.

    Without a shortcut of its own a residual block adds its input; without an activation
    the sum is the output.
    """

    def __init__(
        self,
        branch: Sequence[nnx.Module],
        *,
        residual: bool,
        shortcut: ConvNorm | None = None,
        activation: Activation | None = None,
        drop_rate: float,
    ):
        self.branch = nnx.List(branch)
        self.residual = residual
        self.shortcut = shortcut
        self.activation = activation
        # Stochastic depth: the branch is dropped for some images.
        self.drop = nnx.Dropout(drop_rate, broadcast_dims=(1, 2, 3))

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None
    ) -> jax.Array:
        y = x
        for layer in self.branch:
            y = layer(y, train=train)
        if self.residual:
            y = self.drop(y, deterministic=not train, rngs=key)
            y += x if self.shortcut is None else self.shortcut(x, train=train)
        return y if self.activation is None else self.activation(y)


class Network(nnx.Module):
    """An image classifier."""

    def __init__(
        self,
        layers: Layers,
        stem: Sequence[nnx.Module],
        blocks: Sequence[Block],
        head: Sequence[nnx.Module],
        features: int,
    ):
        self.stem = nnx.List(stem)
        self.blocks = nnx.List(blocks)
        self.head = nnx.List(head)
        self.classifier = layers.linear(features, layers.num_classes)
        self.dtype = layers.dtype

    def __call__(
        self, images: jax.Array, *, train: bool, key: jax.Array | None
    ) -> jax.Array:
        """Logits, float32 [n, num_classes], of normalised images.

        In training, BatchNorm uses the statistics of this batch and updates its running
        averages, and stochastic depth needs a key.
        """
        x = images.astype(self.dtype)
        for layer in self.stem:
            x = layer(x, train=train)
        for index, block in enumerate(self.blocks):
            block_key = None if key is None else jax.random.fold_in(key, index)
            x = block(x, train=train, key=block_key)
        for layer in self.head:
            x = layer(x, train=train)
        return self.classifier(pixel_means(x))


def pixel_means(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
