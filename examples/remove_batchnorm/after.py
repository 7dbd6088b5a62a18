"""A small ResNet without BatchNorm."""

import jax
from flax import nnx

from stablegrad_optax.initializers import variance_preserving


def branch_end(branches: int) -> jax.nn.initializers.Initializer:
    """Weights with which this many residual branches add up to one shortcut."""
    init = variance_preserving(lambda x: x)  # no activation follows
    return lambda *args: init(*args) / branches**0.5


class Block(nnx.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int, branches: int, rngs: nnx.Rngs):
        init = variance_preserving(nnx.relu)
        end = branch_end(branches)
        self.conv1 = nnx.Conv(width, width, (3, 3), kernel_init=init, rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), kernel_init=end, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.conv1(x))
        return nnx.relu(x + self.conv2(y))


class ResNet(nnx.Module):
    """Residual blocks at half the resolution of the images."""

    def __init__(self, blocks: int, width: int, rngs: nnx.Rngs):
        init = variance_preserving(nnx.relu)
        self.stem = nnx.Conv(1, width, (3, 3), strides=2, kernel_init=init, rngs=rngs)
        self.blocks = nnx.List(Block(width, blocks, rngs) for _ in range(blocks))
        self.classifier = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean(axis=(1, 2)))
