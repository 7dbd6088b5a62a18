"""The layers that the models are made of, and their initial weights.

All are called as layer(x, train=train), images being [n, h, w, channels]. They hold
parameters and running statistics, and nothing else: no random state, so that a training
step is a pure function of its arguments.

Initially every layer keeps the second moment of activations at one: a convolution with
an activation behind it takes `variance_preserving(activation)`. Where nothing follows
(the end of a residual branch, the projection of a shortcut, the classifier) that is the
gain of the identity. The last layer of a squeeze-and-excitation gate has it too, so
that sigmoid(z) starts in its linear range; the convolution after the gate makes up for
the factor of about 1/2 with `variance_preserving(sigmoid)`. Biases start at zero.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from examples.image_classification.config import Config
from stablegrad_optax.initializers import Activation, variance_preserving

Initializer = jax.nn.initializers.Initializer


@functools.cache
def gain_of(activation: Activation | None) -> Initializer:
    """variance_preserving, where None stands for the identity."""
    return variance_preserving(nnx.identity if activation is None else activation)


def branch_end(
    config: Config, branches: int, activation: Activation | None = None
) -> Initializer:
    """Initialises the last convolution of one of this many residual branches.

    The activation is the one behind it, or that of the gate before it. A branch is as
    large as its shortcut, so that without normalisation second moments may double with
    each block. "depth-scaled" branches add L times 1/L.
    """
    initializer = gain_of(activation)
    if config.initialization == "variance-preserving":
        return initializer
    return lambda *args: branches**-0.5 * initializer(*args)


def scaled_width(config: Config, channels: int) -> int:
    """Rounded to a multiple of 8, which suits hardware; below 8 to one."""
    scaled = channels * config.width_multiplier
    return 8 * int(scaled / 8 + 0.5) or max(1, round(scaled))


def drop_rates(config: Config, blocks: int, published: float) -> list[float]:
    """Rising linearly from 0 at the first block to nearly the given rate."""
    rate = config.stochastic_depth
    rate = published if rate is None else rate
    return [rate * index / blocks for index in range(blocks)]


def linear(
    inputs: int, outputs: int, rngs: nnx.Rngs, activation: Activation | None = None
) -> nnx.Linear:
    """In float32, at little cost: its inputs are means over pixels."""
    return nnx.Linear(inputs, outputs, kernel_init=gain_of(activation), rngs=rngs)


class ConvNorm(nnx.Module):
    """A convolution, BatchNorm or nothing, an activation if there is one.

    The convolution never has a bias: BatchNorm would subtract it, and networks with and
    without BatchNorm shall differ in nothing else.
    """

    def __init__(
        self,
        config: Config,
        rngs: nnx.Rngs,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activation: Activation | None = None,
        initializer: Initializer | None = None,
        epsilon: float = 1e-5,
    ):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=(stride, stride),
            padding=size // 2,  # the same on both sides, unlike "SAME" with a stride
            feature_group_count=inputs if depthwise else 1,
            use_bias=False,
            kernel_init=initializer or gain_of(activation),
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )
        norm = None
        if config.norm == "batch":
            # In float32: bfloat16 would round the running averages. Not the model's
            # rngs: a seed gives the same convolutions with BatchNorm and without.
            norm = nnx.BatchNorm(
                outputs,
                momentum=0.9,
                epsilon=epsilon,
                dtype=jnp.float32,
                rngs=nnx.Rngs(0),
            )
        self.norm = norm
        self.activation = activation

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x, use_running_average=not train).astype(x.dtype)
        return x if self.activation is None else self.activation(x)


class SqueezeExcitation(nnx.Module):
    """Multiplies each channel by a gate, a function of the means of all channels.

    As published, its two layers have biases and no norm follows them.
    """

    def __init__(self, channels: int, hidden: int, rngs: nnx.Rngs):
        self.squeeze = linear(channels, hidden, rngs, nnx.silu)
        self.excite = linear(hidden, channels, rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        gate = nnx.sigmoid(self.excite(nnx.silu(self.squeeze(pixel_means(x)))))
        return x * gate[:, None, None, :].astype(x.dtype)


class Block(nnx.Module):
    """activation(shortcut(x) + branch(x)), or the branch alone.

    Without a shortcut of its own a residual block adds its input; without an activation
    the sum is the output.
    """

    def __init__(
        self,
        branch: Sequence[nnx.Module],
        drop_rate: float,
        *,
        residual: bool = True,
        shortcut: ConvNorm | None = None,
        activation: Activation | None = None,
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
        stem: ConvNorm,
        blocks: Sequence[Block],
        head: Sequence[ConvNorm],
        classifier: nnx.Linear,
        *,
        pool: bool = False,
    ):
        self.stem = nnx.List([stem])
        self.pool = pool
        self.blocks = nnx.List(blocks)
        self.head = nnx.List(head)
        self.classifier = classifier

    def __call__(
        self, images: jax.Array, *, train: bool, key: jax.Array | None
    ) -> jax.Array:
        """Logits, float32 [n, classes], of normalised images.

        In training, BatchNorm uses the statistics of this batch and updates its running
        averages, and stochastic depth needs a key.
        """
        x = self.stem[0](images, train=train)
        if self.pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for index, block in enumerate(self.blocks):
            block_key = None if key is None else jax.random.fold_in(key, index)
            x = block(x, train=train, key=block_key)
        for layer in self.head:
            x = layer(x, train=train)
        return self.classifier(pixel_means(x))


def pixel_means(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
