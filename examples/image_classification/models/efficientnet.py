"""EfficientNetV2: Tan and Le, https://arxiv.org/abs/2104.00298, 2021."""

import dataclasses
import functools

from flax import nnx

from examples.image_classification.models.initialization import (
    Initialization,
    branch_end,
)
from examples.image_classification.models.layers import Layers, Options
from examples.image_classification.models.network import Block, Network, drop_rates
from examples.image_classification.models.normalization import Identity

MOMENTUM = 0.9
EPSILON = 1e-3
STOCHASTIC_DEPTH = 0.2

_HEAD_CHANNELS = 1280
_SQUEEZE_RATIO = 0.25


@dataclasses.dataclass(frozen=True)
class _Stage:
    """Blocks of one kind; the first has the stride.

    A fused block has one 3 x 3 convolution where others have a 1 x 1 and a depthwise
    one, and no squeeze-and-excitation.
    """

    fused: bool
    depth: int
    stride: int
    expansion: int
    width: int


@dataclasses.dataclass(frozen=True)
class _Config:
    stem_width: int
    stages: tuple[_Stage, ...]


MODELS = {
    "efficientnetv2-b0": _Config(
        32,
        (
            _Stage(True, depth=1, stride=1, expansion=1, width=16),
            _Stage(True, depth=2, stride=2, expansion=4, width=32),
            _Stage(True, depth=2, stride=2, expansion=4, width=48),
            _Stage(False, depth=3, stride=2, expansion=4, width=96),
            _Stage(False, depth=5, stride=1, expansion=6, width=112),
            _Stage(False, depth=8, stride=2, expansion=6, width=192),
        ),
    ),
    "efficientnetv2-s": _Config(
        24,
        (
            _Stage(True, depth=2, stride=1, expansion=1, width=24),
            _Stage(True, depth=4, stride=2, expansion=4, width=48),
            _Stage(True, depth=4, stride=2, expansion=4, width=64),
            _Stage(False, depth=6, stride=2, expansion=4, width=128),
            _Stage(False, depth=9, stride=1, expansion=6, width=160),
            _Stage(False, depth=15, stride=2, expansion=6, width=256),
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What one block is to be."""

    fused: bool
    in_channels: int
    out_channels: int
    expansion: int
    stride: int

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels


def build(name: str, layers: Layers, options: Options) -> Network:
    """An EfficientNetV2, without the dropout before its classifier.

    For small images the stem has stride 1; the later strides, of 16 together, stay.
    """
    config = MODELS[name]
    stem_channels = options.width(config.stem_width)
    shapes = _shapes(config, stem_channels, options)
    num_residual = sum(shape.residual for shape in shapes)
    rates = drop_rates(options.stochastic_depth, len(shapes))
    stem_stride = 1 if options.small_images else 2
    stem = layers.conv(
        options.in_channels,
        stem_channels,
        3,
        stride=stem_stride,
        activation=nnx.silu,
    )
    blocks = [
        Block(
            _branch(layers, shape, options.initialization, num_residual),
            shortcut=Identity() if shape.residual else None,
            drop_rate=rate,
        )
        for shape, rate in zip(shapes, rates, strict=True)
    ]
    head_channels = options.width(_HEAD_CHANNELS)
    head = layers.conv(shapes[-1].out_channels, head_channels, 1, activation=nnx.silu)
    return Network(
        stem=[stem],
        blocks=blocks,
        head=[head],
        classifier=layers.linear(head_channels, options.num_classes),
        dtype=layers.dtype,
    )


def _shapes(config: _Config, in_channels: int, options: Options) -> list[_Shape]:
    shapes = []
    for stage in config.stages:
        width = options.width(stage.width)
        for index in range(stage.depth):
            stride = stage.stride if index == 0 else 1
            shapes.append(
                _Shape(stage.fused, in_channels, width, stage.expansion, stride)
            )
            in_channels = width
    return shapes


def _branch(
    layers: Layers, shape: _Shape, initialization: Initialization, num_residual: int
) -> list[nnx.Module]:
    hidden = shape.expansion * shape.in_channels
    end = functools.partial(
        branch_end, initialization, num_residual if shape.residual else 1
    )
    if shape.fused and shape.expansion == 1:
        return [
            layers.conv(
                shape.in_channels,
                shape.out_channels,
                3,
                stride=shape.stride,
                activation=nnx.silu,
                initializer=end(nnx.silu),
            )
        ]
    if shape.fused:
        return [
            layers.conv(
                shape.in_channels, hidden, 3, stride=shape.stride, activation=nnx.silu
            ),
            layers.conv(hidden, shape.out_channels, 1, initializer=end()),
        ]
    return [
        layers.conv(shape.in_channels, hidden, 1, activation=nnx.silu),
        layers.conv(
            hidden,
            hidden,
            3,
            stride=shape.stride,
            depthwise=True,
            activation=nnx.silu,
        ),
        layers.squeeze_excitation(
            hidden, max(1, int(_SQUEEZE_RATIO * shape.in_channels))
        ),
        layers.conv(hidden, shape.out_channels, 1, initializer=end(nnx.sigmoid)),
    ]
