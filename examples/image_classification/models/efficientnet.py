"""EfficientNetV2: Tan and Le, https://arxiv.org/abs/2104.00298, 2021."""

import functools

from flax import nnx

from examples.image_classification.config import Config
from examples.image_classification.models import layers

MODELS = {
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


def build(
    config: Config, rngs: nnx.Rngs, classes: int, channels: int, small_images: bool
) -> layers.Network:
    """An EfficientNetV2, without the dropout before its classifier.

    For small images the stem has stride 1; the later strides, of 16 together, stay.
    """
    stem_width, *stages = MODELS[config.model]
    conv = functools.partial(layers.ConvNorm, config, rngs, epsilon=1e-3)
    silu = nnx.silu
    before = layers.scaled_width(config, stem_width)
    stride = 1 if small_images else 2
    stem = conv(channels, before, 3, stride=stride, activation=silu)
    shapes = []
    for fused, depth, first_stride, expansion, width in stages:
        after = layers.scaled_width(config, width)
        for index in range(depth):
            stride = first_stride if index == 0 else 1
            shapes.append((fused, stride, expansion, before, after))
            before = after
    residual = [
        stride == 1 and before == after for _, stride, _, before, after in shapes
    ]
    rates = layers.drop_rates(config, len(shapes), published=0.2)
    blocks = []
    for shape, adds, rate in zip(shapes, residual, rates, strict=True):
        fused, stride, expansion, before, after = shape
        hidden = expansion * before
        branches = sum(residual) if adds else 1
        end = functools.partial(layers.branch_end, config, branches)
        branch: list[nnx.Module]
        if expansion == 1:
            only = functools.partial(conv, before, after, 3, initializer=end(silu))
            branch = [only(stride=stride, activation=silu)]
        elif fused:
            branch = [
                conv(before, hidden, 3, stride=stride, activation=silu),
                conv(hidden, after, 1, initializer=end()),
            ]
        else:
            deep = functools.partial(conv, hidden, hidden, 3, depthwise=True)
            branch = [
                conv(before, hidden, 1, activation=silu),
                deep(stride=stride, activation=silu),
                layers.SqueezeExcitation(hidden, max(1, before // 4), rngs),
                conv(hidden, after, 1, initializer=end(nnx.sigmoid)),
            ]
        blocks.append(layers.Block(branch, rate, residual=adds))
    features = layers.scaled_width(config, 1280)
    head = conv(after, features, 1, activation=silu)
    return layers.Network(stem, blocks, [head], layers.linear(features, classes, rngs))
