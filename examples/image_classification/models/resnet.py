"""ResNets with post-activation: He et al., https://arxiv.org/abs/1512.03385, 2015.

In bottleneck blocks the 3 x 3 convolution has the stride ("v1.5"), which is what most
published results are of.
"""

import dataclasses

from flax import nnx

from examples.image_classification.models.initialization import branch_end
from examples.image_classification.models.layers import Layers, MaxPool, Options
from examples.image_classification.models.network import Block, Network, drop_rates
from examples.image_classification.models.normalization import Identity

MOMENTUM = 0.9
EPSILON = 1e-5
STOCHASTIC_DEPTH = 0.0

_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class _Config:
    depths: tuple[int, ...]
    bottleneck: bool


MODELS = {
    "resnet18": _Config((2, 2, 2, 2), bottleneck=False),
    "resnet34": _Config((3, 4, 6, 3), bottleneck=False),
    "resnet50": _Config((3, 4, 6, 3), bottleneck=True),
    "resnet101": _Config((3, 4, 23, 3), bottleneck=True),
}


def build(name: str, layers: Layers, options: Options) -> Network:
    """A ResNet; for small images its stem is one 3 x 3 convolution of stride 1."""
    config = MODELS[name]
    widths = [options.width(width) for width in _WIDTHS]
    num_blocks = sum(config.depths)
    last_initializer = branch_end(options.initialization, num_blocks)
    rates = iter(drop_rates(options.stochastic_depth, num_blocks))

    channels = widths[0]
    blocks = []
    for stage, (width, depth) in enumerate(zip(widths, config.depths, strict=True)):
        out_channels = _EXPANSION * width if config.bottleneck else width
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            make = _bottleneck if config.bottleneck else _basic
            shortcut: nnx.Module = Identity()
            if stride > 1 or channels != out_channels:
                shortcut = layers.conv(channels, out_channels, 1, stride=stride)
            block = Block(
                [
                    *make(layers, channels, width, stride),
                    layers.conv(
                        width,
                        out_channels,
                        1 if config.bottleneck else 3,
                        initializer=last_initializer,
                    ),
                ],
                shortcut=shortcut,
                activation=nnx.relu,
                drop_rate=next(rates),
            )
            blocks.append(block)
            channels = out_channels
    return Network(
        stem=_stem(layers, options, widths[0]),
        blocks=blocks,
        classifier=layers.linear(channels, options.num_classes),
        dtype=layers.dtype,
    )


def _stem(layers: Layers, options: Options, width: int) -> list[nnx.Module]:
    channels = options.in_channels
    if options.small_images:
        return [layers.conv(channels, width, 3, activation=nnx.relu)]
    return [
        layers.conv(channels, width, 7, stride=2, activation=nnx.relu),
        MaxPool(),
    ]


def _basic(layers: Layers, channels: int, width: int, stride: int) -> list[nnx.Module]:
    return [layers.conv(channels, width, 3, stride=stride, activation=nnx.relu)]


def _bottleneck(
    layers: Layers, channels: int, width: int, stride: int
) -> list[nnx.Module]:
    reduce = layers.conv(channels, width, 1, activation=nnx.relu)
    return [reduce, *_basic(layers, width, width, stride)]
