"""What is minimised: the cross entropy of a network's logits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Batch = Mapping[str, jax.Array]


class Variables(NamedTuple):
    """The arrays of a network, as dicts."""

    params: Any
    batch_stats: Any
    """Of BatchNorm; empty without it."""


def take_apart(model: nnx.Module) -> tuple[Any, Variables]:
    """The structure of a network, and its arrays."""
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, Variables(*map(nnx.to_pure_dict, states))


class Objective:
    """The network as pure functions of its parameters, and its loss.

    Args:
      model: maps images to logits; only its structure is kept, so it may be abstract.
      mean, std: of the training images' channels, in units where white is 1.
      label_smoothing: probability that is spread over all classes.
    """

    def __init__(
        self,
        model: nnx.Module,
        mean: jax.typing.ArrayLike,
        std: jax.typing.ArrayLike,
        label_smoothing: float = 0.0,
    ):
        self._graph, _ = take_apart(model)
        self._mean, self._std = jnp.asarray(mean), jnp.asarray(std)
        self._label_smoothing = label_smoothing

    def predict(
        self, params: Any, batch_stats: Any, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """Logits in training, and BatchNorm's new averages."""
        images = _mixed(self._normalised(batch["image"]), batch)
        return self._apply(params, batch_stats, images, train=True, key=key)

    def loss(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """Mean cross entropy in training."""
        labels = _mixed(jax.nn.one_hot(batch["label"], logits.shape[-1]), batch)
        labels = optax.smooth_labels(labels, self._label_smoothing)
        return optax.softmax_cross_entropy(logits, labels).mean()

    def logits(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits in testing."""
        images = self._normalised(images)
        return self._apply(*variables, images, train=False, key=None)[0]

    def _apply(self, params, batch_stats, images, *, train, key):
        model = nnx.merge(self._graph, nnx.State(params), nnx.State(batch_stats))
        logits = model(images, train=train, key=key)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def _normalised(self, images: jax.Array) -> jax.Array:
        return (images.astype(jnp.float32) / 255 - self._mean) / self._std


def _mixed(x: jax.Array, batch: Batch) -> jax.Array:
    """Mixup of row i with row n - 1 - i, if the batch has weights for it."""
    if "mix_weight" not in batch:
        return x
    weight = batch["mix_weight"].reshape(-1, *[1] * (x.ndim - 1))
    return (1 - weight) * x + weight * x[::-1]
