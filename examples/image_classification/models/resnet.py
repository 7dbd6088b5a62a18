"""ResNets with post-activation: He et al., https://arxiv.org/abs/1512.03385, 2015.

In bottleneck blocks the 3 x 3 convolution has the stride ("v1.5"), which is what most
published results are of.
"""

from flax import nnx

from examples.image_classification.models.layers import Block, Layers, MaxPool, Network

MODELS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
"""Blocks of each stage."""
BOTTLENECK = ("resnet50", "resnet101")


def build(layers: Layers) -> Network:
    """A ResNet; for small images its stem is one 3 x 3 convolution of stride 1."""
    name = layers.config.model
    depths, bottleneck = MODELS[name], name in BOTTLENECK
    num_blocks = sum(depths)
    last_initializer = layers.branch_end(num_blocks)
    rates = iter(layers.drop_rates(num_blocks, published=0.0))
    relu = nnx.relu

    stem_width = channels = layers.width(64)
    blocks = []
    for stage, depth in enumerate(depths):
        width = layers.width(64 * 2**stage)
        out_channels = 4 * width if bottleneck else width
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            shortcut = None
            if stride > 1 or channels != out_channels:
                shortcut = layers.conv(channels, out_channels, 1, stride=stride)
            branch, hidden = [], channels
            if bottleneck:
                branch.append(layers.conv(channels, width, 1, activation=relu))
                hidden = width
            branch.append(layers.conv(hidden, width, 3, stride=stride, activation=relu))
            size = 1 if bottleneck else 3
            last = layers.conv(width, out_channels, size, initializer=last_initializer)
            block = Block(
                [*branch, last],
                residual=True,
                shortcut=shortcut,
                activation=relu,
                drop_rate=next(rates),
            )
            blocks.append(block)
            channels = out_channels

    stem: list[nnx.Module]
    if layers.small_images:
        stem = [layers.conv(layers.in_channels, stem_width, 3, activation=relu)]
    else:
        first = layers.conv(
            layers.in_channels, stem_width, 7, stride=2, activation=relu
        )
        stem = [first, MaxPool()]
    return Network(layers, stem, blocks, head=[], features=channels)
