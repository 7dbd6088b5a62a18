"""EfficientNetV2: Tan and Le, https://arxiv.org/abs/2104.00298, 2021."""

import dataclasses
from typing import NamedTuple

from flax import nnx

from examples.image_classification.models.layers import (
    Block,
    Layers,
    Network,
    SqueezeExcitation,
)


class Stage(NamedTuple):
    """Blocks of one kind; the first has the stride.

    A fused block has one 3 x 3 convolution where others have a 1 x 1 and a depthwise
    one, and no squeeze-and-excitation.
    """

    fused: bool
    depth: int
    stride: int
    expansion: int
    width: int


MODELS = {
    "efficientnetv2-b0": (
        32,
        (
            Stage(True, depth=1, stride=1, expansion=1, width=16),
            Stage(True, depth=2, stride=2, expansion=4, width=32),
            Stage(True, depth=2, stride=2, expansion=4, width=48),
            Stage(False, depth=3, stride=2, expansion=4, width=96),
            Stage(False, depth=5, stride=1, expansion=6, width=112),
            Stage(False, depth=8, stride=2, expansion=6, width=192),
        ),
    ),
    "efficientnetv2-s": (
        24,
        (
            Stage(True, depth=2, stride=1, expansion=1, width=24),
            Stage(True, depth=4, stride=2, expansion=4, width=48),
            Stage(True, depth=4, stride=2, expansion=4, width=64),
            Stage(False, depth=6, stride=2, expansion=4, width=128),
            Stage(False, depth=9, stride=1, expansion=6, width=160),
            Stage(False, depth=15, stride=2, expansion=6, width=256),
        ),
    ),
}
"""Channels of the stem, and the stages."""


def build(layers: Layers) -> Network:
    """An EfficientNetV2, without the dropout before its classifier.

    For small images the stem has stride 1; the later strides, of 16 together, stay.
    """
    layers = dataclasses.replace(layers, epsilon=1e-3)
    stem_width, stages = MODELS[layers.config.model]
    channels = layers.width(stem_width)
    stride = 1 if layers.small_images else 2
    stem = layers.conv(
        layers.in_channels, channels, 3, stride=stride, activation=nnx.silu
    )
    shapes = []
    for stage in stages:
        width = layers.width(stage.width)
        for index in range(stage.depth):
            stride = stage.stride if index == 0 else 1
            shapes.append((stage, stride, channels, width))
            channels = width
    residual = [stride == 1 and before == after for _, stride, before, after in shapes]
    rates = layers.drop_rates(len(shapes), published=0.2)
    blocks = [
        Block(
            _branch(layers, *shape, num_branches=sum(residual) if adds else 1),
            residual=adds,
            drop_rate=rate,
        )
        for shape, adds, rate in zip(shapes, residual, rates, strict=True)
    ]
    features = layers.width(1280)
    head = layers.conv(channels, features, 1, activation=nnx.silu)
    return Network(layers, [stem], blocks, [head], features)


def _branch(
    layers: Layers,
    stage: Stage,
    stride: int,
    before: int,
    after: int,
    num_branches: int,
) -> list[nnx.Module]:
    hidden, silu = stage.expansion * before, nnx.silu
    first: list[nnx.Module]
    if stage.expansion == 1:
        end = layers.branch_end(num_branches, silu)
        return [
            layers.conv(
                before, after, 3, stride=stride, activation=silu, initializer=end
            )
        ]
    if stage.fused:
        end = layers.branch_end(num_branches)
        first = [layers.conv(before, hidden, 3, stride=stride, activation=silu)]
    else:
        end = layers.branch_end(num_branches, nnx.sigmoid)
        first = [
            layers.conv(before, hidden, 1, activation=silu),
            layers.conv(
                hidden, hidden, 3, stride=stride, depthwise=True, activation=silu
            ),
            SqueezeExcitation(layers, hidden, max(1, before // 4)),
        ]
    return [*first, layers.conv(hidden, after, 1, initializer=end)]
