"""What all models have in common: a stem, residual blocks, a head and a classifier."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from examples.image_classification.models.layers import pixel_means
from stablegrad_optax.initializers import Activation


class Block(nnx.Module):
    """activation(shortcut(x) + branch(x)).

    Without an activation the sum is the output; without a shortcut the branch is.
    """

    def __init__(
        self,
        branch: Sequence[nnx.Module],
        *,
        shortcut: nnx.Module | None,
        activation: Activation | None = None,
        drop_rate: float,
    ):
        self.branch = nnx.List(branch)
        self.shortcut = shortcut
        self.activation = activation
        self.drop_rate = drop_rate

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None
    ) -> jax.Array:
        y = x
        for layer in self.branch:
            y = layer(y, train=train)
        if self.shortcut is not None:
            if train and self.drop_rate > 0:
                y = drop_samples(y, self.drop_rate, key)
            y = self.shortcut(x, train=train) + y
        return y if self.activation is None else self.activation(y)


def drop_samples(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Stochastic depth: zero for some samples, larger for others, x in expectation."""
    if key is None:
        raise ValueError("stochastic depth needs a key in training.")
    kept = jax.random.bernoulli(key, 1 - rate, (len(x), *(1,) * (x.ndim - 1)))
    return jnp.where(kept, x / (1 - rate), 0)


def drop_rates(rate: float, num_blocks: int) -> list[float]:
    """Rising linearly from 0 at the first block; `rate` would be that of one more."""
    return [rate * index / num_blocks for index in range(num_blocks)]


class Network(nnx.Module):
    """An image classifier."""

    def __init__(
        self,
        *,
        stem: Sequence[nnx.Module],
        blocks: Sequence[Block],
        head: Sequence[nnx.Module] = (),
        classifier: nnx.Linear,
        dtype: Any,
    ):
        self.stem = nnx.List(stem)
        self.blocks = nnx.List(blocks)
        self.head = nnx.List(head)
        self.classifier = classifier
        self.dtype = dtype

    def __call__(
        self, images: jax.Array, *, train: bool, key: jax.Array | None
    ) -> jax.Array:
        """Logits.

        Args:
          images: shape [n, h, w, channels], normalised.
          train: whether norms take the statistics of this batch, and update their
            running averages, and whether residual branches are dropped.
          key: randomness of stochastic depth; it may be None if there is none.

        Returns:
          float32 [n, num_classes].
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
