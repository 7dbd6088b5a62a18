"""ResNets with post-activation: He et al., https://arxiv.org/abs/1512.03385, 2015.

In bottleneck blocks the 3 x 3 convolution has the stride ("v1.5"), which is what most
published results are of.
"""

import functools

from flax import nnx

from examples.image_classification.config import Config
from examples.image_classification.models import layers

MODELS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
"""Blocks of each stage."""
BOTTLENECK = ("resnet50", "resnet101")


def build(
    config: Config, rngs: nnx.Rngs, classes: int, channels: int, small_images: bool
) -> layers.Network:
    """A ResNet; for small images its stem is one 3 x 3 convolution of stride 1."""
    depths, bottleneck = MODELS[config.model], config.model in BOTTLENECK
    conv, relu = functools.partial(layers.ConvNorm, config, rngs), nnx.relu
    end = layers.branch_end(config, sum(depths))
    rates = iter(layers.drop_rates(config, sum(depths), published=0.0))
    stem_width = before = layers.scaled_width(config, 64)
    blocks = []
    for stage, depth in enumerate(depths):
        width = layers.scaled_width(config, 64 * 2**stage)
        after = 4 * width if bottleneck else width
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            shortcut = None
            if stride > 1 or before != after:
                shortcut = conv(before, after, 1, stride=stride)
            if bottleneck:
                branch = [
                    conv(before, width, 1, activation=relu),
                    conv(width, width, 3, stride=stride, activation=relu),
                    conv(width, after, 1, initializer=end),
                ]
            else:
                branch = [
                    conv(before, width, 3, stride=stride, activation=relu),
                    conv(width, after, 3, initializer=end),
                ]
            rate = next(rates)
            blocks.append(
                layers.Block(branch, rate, shortcut=shortcut, activation=relu)
            )
            before = after
    size, stride = (3, 1) if small_images else (7, 2)
    stem = conv(channels, stem_width, size, stride=stride, activation=relu)
    classifier = layers.linear(before, classes, rngs)
    return layers.Network(stem, blocks, [], classifier, pool=not small_images)
