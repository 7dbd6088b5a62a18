"""What is minimised: the cross entropy of a network's logits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Batch = Mapping[str, jax.Array]


class Variables(NamedTuple):
    """What a network holds, as dicts."""

    params: Any
    batch_stats: Any
    """Of BatchNorm; empty without it."""


def take_apart(model: nnx.Module) -> tuple[Any, Variables]:
    """What a network is, and what it holds."""
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, Variables(*map(nnx.to_pure_dict, states))


class Objective:
    """The network as pure functions of its parameters, and its loss."""

    def __init__(
        self,
        model: nnx.Module,
        mean: jax.Array,
        std: jax.Array,
        label_smoothing: float = 0.0,
    ):
        """Of a network.

        Args:
          model: maps images to logits; it may be abstract, only its form is kept.
          mean: of the training images' channels, in units where white is 1.
          std: likewise.
          label_smoothing: probability that is spread over all classes.
        """
        self._graph, _ = take_apart(model)
        self._mean, self._std = mean, std
        self._label_smoothing = label_smoothing

    def predict(
        self, params: Any, batch_stats: Any, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """Logits in training, and BatchNorm's new averages."""
        images = self._normalised(batch["image"])
        if "mix_image" in batch:
            weight = batch["mix_weight"][:, None, None, None]
            other = self._normalised(batch["mix_image"])
            images = (1 - weight) * images + weight * other
        return self._apply(params, batch_stats, images, train=True, key=key)

    def loss(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """Mean cross entropy in training."""
        labels = self._distribution(batch["label"], logits)
        if "mix_label" in batch:
            weight = batch["mix_weight"][:, None]
            other = self._distribution(batch["mix_label"], logits)
            labels = (1 - weight) * labels + weight * other
        labels = optax.smooth_labels(labels, self._label_smoothing)
        return optax.softmax_cross_entropy(logits, labels).mean()

    def logits(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits in testing."""
        images = self._normalised(images)
        params, batch_stats = variables
        return self._apply(params, batch_stats, images, train=False, key=None)[0]

    def _apply(self, params, batch_stats, images, *, train, key):
        model = nnx.merge(self._graph, nnx.State(params), nnx.State(batch_stats))
        logits = model(images, train=train, key=key)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def _normalised(self, images: jax.Array) -> jax.Array:
        return (images.astype(jnp.float32) / 255 - self._mean) / self._std

    def _distribution(self, labels: jax.Array, logits: jax.Array) -> jax.Array:
        return jax.nn.one_hot(labels, logits.shape[-1])
