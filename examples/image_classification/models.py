"""ResNets and EfficientNetV2, with BatchNorm or with nothing in its place.

Images are [n, h, w, channels]. The layers hold parameters and running statistics, and
nothing else: no random state, so that a training step is a pure function of its
arguments.

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

RESNETS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
"""Blocks of each stage."""
BOTTLENECK = ("resnet50", "resnet101")
EFFICIENTNETS = {
    # Channels of the stem; of each stage whether it is fused, the number of blocks, the
    # stride of the first, the expansion in a block, and its channels. A fused block has
    # one 3 x 3 convolution where others have a 1 x 1 and a depthwise one, and no
    # squeeze-and-excitation.
    "efficientnetv2-b0": (
        32,
        (True, 1, 1, 1, 16),
        (True, 2, 2, 4, 32),
        (True, 2, 2, 4, 48),
        (False, 3, 2, 4, 96),
        (False, 5, 1, 6, 112),
        (False, 8, 2, 6, 192),
    ),
    "efficientnetv2-s": (
        24,
        (True, 2, 1, 1, 24),
        (True, 4, 2, 4, 48),
        (True, 4, 2, 4, 64),
        (False, 6, 2, 4, 128),
        (False, 9, 1, 6, 160),
        (False, 15, 2, 6, 256),
    ),
}

Initializer = jax.nn.initializers.Initializer


# --- Layers ---


@functools.cache
def gain_of(activation: Activation) -> Initializer:
    """One object for each activation: a network that is traced again stays the same."""
    return variance_preserving(activation)


class ConvNorm(nnx.Module):
    """A convolution, BatchNorm or nothing, an activation.

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
        activation: Activation = nnx.identity,
        *,
        stride: int = 1,
        depthwise: bool = False,
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
        # In float32: bfloat16 would round the running averages. Not the model's rngs: a
        # seed gives the same convolutions with BatchNorm and without.
        norm = functools.partial(nnx.BatchNorm, outputs, momentum=0.9, epsilon=epsilon)
        is_batch = config.norm == "batch"
        self.norm = norm(dtype=jnp.float32, rngs=nnx.Rngs(0)) if is_batch else None
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x).astype(x.dtype)
        return self.activation(x)


def linear(
    inputs: int, outputs: int, rngs: nnx.Rngs, activation: Activation = nnx.identity
) -> nnx.Linear:
    """In float32, at little cost: its inputs are means over pixels."""
    return nnx.Linear(inputs, outputs, kernel_init=gain_of(activation), rngs=rngs)


def pixel_means(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


class SqueezeExcitation(nnx.Module):
    """Multiplies each channel by a gate, a function of the means of all channels.

    As published, its two layers have biases and no norm follows them.
    """

    def __init__(self, channels: int, hidden: int, rngs: nnx.Rngs):
        self.squeeze = linear(channels, hidden, rngs, nnx.silu)
        self.excite = linear(hidden, channels, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = nnx.sigmoid(self.excite(nnx.silu(self.squeeze(pixel_means(x)))))
        return x * gate[:, None, None, :].astype(x.dtype)


class Block(nnx.Module):
    """activation(shortcut(x) + branch(x)), or the branch alone.

    Without a shortcut of its own a residual block adds its input.
    """

    def __init__(
        self,
        branch: Sequence[nnx.Module],
        activation: Activation = nnx.identity,
        *,
        residual: bool = True,
        shortcut: ConvNorm | None = None,
    ):
        self.branch = nnx.List(branch)
        self.activation = activation
        self.residual = residual
        self.shortcut = shortcut
        # Stochastic depth: the branch is dropped for some images.
        self.drop = nnx.Dropout(0.0, broadcast_dims=(1, 2, 3))

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        y = x
        for layer in self.branch:
            y = layer(y)
        if self.residual:
            y = self.drop(y, rngs=key)
            y += x if self.shortcut is None else self.shortcut(x)
        return self.activation(y)


class Network(nnx.Module):
    """An image classifier; train() and eval() are those of NNX.

    In training, BatchNorm uses the statistics of the batch and updates its running
    averages, and stochastic depth needs a key.
    """

    def __init__(
        self,
        stem: ConvNorm,
        blocks: Sequence[Block],
        head: Sequence[ConvNorm],
        classifier: nnx.Linear,
        *,
        drop_rate: float,
        pool: bool = False,
    ):
        self.stem = nnx.List([stem])
        self.pool = pool
        self.blocks = nnx.List(blocks)
        self.head = nnx.List(head)
        self.classifier = classifier
        for index, block in enumerate(blocks):
            block.drop.rate = drop_rate * index / len(blocks)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits, float32 [n, classes], of normalised images."""
        x = self.stem[0](images)
        if self.pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for index, block in enumerate(self.blocks):
            x = block(x, None if key is None else jax.random.fold_in(key, index))
        for layer in self.head:
            x = layer(x)
        return self.classifier(pixel_means(x))


# --- Networks ---


def build(
    config: Config, rngs: nnx.Rngs, classes: int, channels: int, small_images: bool
) -> Network:
    """The network of the options; for small images its stem has no strides."""
    family = resnet if config.model in RESNETS else efficientnet
    return family(config, rngs, classes, channels, small_images)


def scaled_width(config: Config, channels: int) -> int:
    """Rounded to a multiple of 8, which suits hardware; below 8 to one."""
    scaled = channels * config.width_multiplier
    return 8 * int(scaled / 8 + 0.5) or max(1, round(scaled))


def branch_end(
    config: Config, branches: int, activation: Activation = nnx.identity
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


def resnet(
    config: Config, rngs: nnx.Rngs, classes: int, channels: int, small_images: bool
) -> Network:
    """With post-activation: He et al., https://arxiv.org/abs/1512.03385, 2015.

    In bottleneck blocks the 3 x 3 convolution has the stride ("v1.5"), which is what
    most published results are of.
    """
    depths = RESNETS[config.model]
    conv, relu = functools.partial(ConvNorm, config, rngs), nnx.relu
    end = branch_end(config, sum(depths))
    stem_width = before = scaled_width(config, 64)
    blocks = []
    for stage, depth in enumerate(depths):
        after = width = scaled_width(config, 64 * 2**stage)
        if config.model in BOTTLENECK:
            after = 4 * width
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            shortcut = None
            if stride > 1 or before != after:
                shortcut = conv(before, after, 1, stride=stride)
            if config.model in BOTTLENECK:
                branch = [
                    conv(before, width, 1, relu),
                    conv(width, width, 3, relu, stride=stride),
                    conv(width, after, 1, initializer=end),
                ]
            else:
                branch = [
                    conv(before, width, 3, relu, stride=stride),
                    conv(width, after, 3, initializer=end),
                ]
            blocks.append(Block(branch, relu, shortcut=shortcut))
            before = after
    size, stride = (3, 1) if small_images else (7, 2)
    stem = conv(channels, stem_width, size, relu, stride=stride)
    classifier = linear(before, classes, rngs)
    drop_rate = config.stochastic_depth or 0.0
    return Network(
        stem, blocks, [], classifier, drop_rate=drop_rate, pool=not small_images
    )


def efficientnet(
    config: Config, rngs: nnx.Rngs, classes: int, channels: int, small_images: bool
) -> Network:
    """EfficientNetV2: Tan and Le, https://arxiv.org/abs/2104.00298, 2021.

    Without the dropout before its classifier. For small images the strides behind the
    stem, of 16 together, stay.
    """
    stem_width, *stages = EFFICIENTNETS[config.model]
    conv, silu = functools.partial(ConvNorm, config, rngs, epsilon=1e-3), nnx.silu
    before = scaled_width(config, stem_width)
    stem = conv(channels, before, 3, silu, stride=1 if small_images else 2)
    shapes = []
    for fused, depth, first_stride, expansion, width in stages:
        after = scaled_width(config, width)
        for index in range(depth):
            stride = first_stride if index == 0 else 1
            shapes.append((fused, stride, expansion, before, after))
            before = after
    residual = [
        stride == 1 and before == after for _, stride, _, before, after in shapes
    ]
    blocks = []
    for shape, adds in zip(shapes, residual, strict=True):
        fused, stride, expansion, before, after = shape
        hidden = expansion * before
        end = functools.partial(branch_end, config, sum(residual) if adds else 1)
        branch: list[nnx.Module]
        if expansion == 1:
            branch = [
                conv(before, after, 3, silu, stride=stride, initializer=end(silu))
            ]
        elif fused:
            branch = [
                conv(before, hidden, 3, silu, stride=stride),
                conv(hidden, after, 1, initializer=end()),
            ]
        else:
            branch = [
                conv(before, hidden, 1, silu),
                conv(hidden, hidden, 3, silu, stride=stride, depthwise=True),
                SqueezeExcitation(hidden, max(1, before // 4), rngs),
                conv(hidden, after, 1, initializer=end(nnx.sigmoid)),
            ]
        blocks.append(Block(branch, residual=adds))
    features = scaled_width(config, 1280)
    head = [conv(after, features, 1, silu)]
    rate = 0.2 if config.stochastic_depth is None else config.stochastic_depth
    return Network(stem, blocks, head, linear(features, classes, rngs), drop_rate=rate)
