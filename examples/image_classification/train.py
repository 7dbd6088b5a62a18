"""A step of training, and what else a run computes, over the devices of a mesh."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import stablegrad_optax as sg
from examples.common import optimizers
from examples.common.runs import RunError
from examples.image_classification import data, models
from examples.image_classification.config import Config
from examples.image_classification.mesh import mesh_of, place_of, put

Batch = Mapping[str, jax.Array]


class State(NamedTuple):
    """What a step updates: all that a checkpoint holds."""

    params: Any
    batch_stats: Any
    """Of BatchNorm; empty without it."""
    optimizer: Any
    average: Any
    """Moving average of the parameters; empty without one."""


class Gradient(NamedTuple):
    """Of a batch, or of a part of it."""

    grads: Any
    reference: jax.Array
    """The scale of the prediction gradient."""
    loss: jax.Array
    accuracy: jax.Array


def program_of(config: Config) -> "Program":
    """Runs that differ in nothing but rate and seed share what is compiled."""
    return shared_program(
        dataclasses.replace(config, out=Path(), resume=False, lr=1.0, seed=0)
    )


class Program:
    """What a run computes, for any rate and seed."""

    def __init__(self, config: Config):
        """Checks that the options go together; nothing is traced yet."""
        self.config = config
        self.mesh = mesh_of(config)
        self.dataset = data.load(config.data, config.data_dir, config.image_size)
        number = len(self.dataset.train.labels)
        if config.batch_size > number:
            raise RunError(
                "--batch-size must be at most the number of training images, "
                f"{number}, got {config.batch_size}."
            )
        self.steps_per_epoch = number // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.compile_seconds = 0.0
        self._compiled: Any = None

    # --- What runs ---

    def start(self, seed: int, lr: float) -> State:
        """The initial state."""
        start = jax.jit(self._start, out_shardings=self._places)
        return start(np.uint32(seed), np.float32(lr))

    def advance(
        self, state: State, batch: data.Batch, step: int, seed: int, lr: float
    ) -> tuple[State, dict[str, Any]]:
        """Makes a step, counted from zero, in the memory of the old state.

        Returns:
          The new state; loss and accuracy before it, and the gradient's scales.
        """
        options = np.int32(step), np.uint32(seed), np.float32(lr)
        arguments = state, put(self.mesh, batch), *options
        if self._compiled is None:
            start = time.perf_counter()
            places = self._places, self._whole
            jitted = jax.jit(self._advance, donate_argnums=0, out_shardings=places)
            self._compiled = jitted.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - start
        return self._compiled(*arguments)

    def test(self, state: State) -> dict[str, float]:
        """Means over the test images."""
        sums = [
            self.sums(state, put(self.mesh, batch))
            for batch in data.testing(self.dataset, self.config)
        ]
        loss, right = np.sum(jax.device_get(sums), axis=0, dtype=float)
        number = len(self.dataset.test.labels)
        return {"test_loss": loss / number, "test_accuracy": right / number}

    # --- What is traced ---

    @functools.cached_property
    def state(self) -> State:
        """Its shapes on this mesh; a checkpoint may be from another."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=place_of(self.mesh, x)
            ),
            jax.eval_shape(self._start, 0, 0.0),
        )

    @property
    def _places(self) -> Any:
        return jax.tree.map(lambda x: x.sharding, self.state)

    @property
    def _whole(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @functools.cached_property
    def _graph(self) -> Any:
        return nnx.graphdef(nnx.eval_shape(lambda: self._network(nnx.Rngs(0))))

    def _network(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network with its initial parameters."""
        _, height, _, channels = self.dataset.test.read(np.arange(1)).shape
        classes, small_images = self.dataset.classes, height <= 64
        return models.build(self.config, rngs, classes, channels, small_images)

    def _start(self, seed: jax.Array, lr: jax.Array) -> State:
        model = self._network(nnx.Rngs(params=jax.random.key(seed)))
        _, *variables = nnx.split(model, nnx.Param, nnx.BatchStat)
        params, batch_stats = map(nnx.to_pure_dict, variables)
        average = params if self.config.ema_decay else ()
        return State(params, batch_stats, self.optimizer(lr).init(params), average)

    def _advance(
        self, state: State, batch: Batch, index: jax.Array, seed: jax.Array, lr
    ) -> tuple[State, dict[str, Any]]:
        config, params = self.config, state.params
        key = jax.random.fold_in(jax.random.key(seed), index)
        found, batch_stats = self.gradient(params, state.batch_stats, batch, key)
        extra = {}
        if config.scale_control == "stablegrad-prediction":
            extra = {"reference": found.reference}
        updates, optimizer = self.optimizer(lr).update(
            found.grads, state.optimizer, params, **extra
        )
        params = optax.apply_updates(params, updates)
        average = state.average
        if config.ema_decay:
            average = optax.incremental_update(params, average, 1 - config.ema_decay)
        report = {
            "loss": found.loss,
            "train_accuracy": found.accuracy,
            "layer_scales": sg.layer_scales(found.grads),
        }
        return State(params, batch_stats, optimizer, average), report

    @functools.cached_property
    def sums(self) -> Any:
        """Of the loss and of right answers, over the test images of a batch."""

        def sums(state: State, batch: Batch) -> jax.Array:
            # If there is an average of the parameters, it is what is tested.
            params = state.average if self.config.ema_decay else state.params
            labels = batch["label"]
            logits, _ = self.logits(params, state.batch_stats, batch["image"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.stack([losses, logits.argmax(-1) == labels]) @ batch["weight"]

        return jax.jit(sums, out_shardings=self._whole)

    def logits(self, params, batch_stats, images, key=None):
        """Logits, and BatchNorm's new averages; in training if there is a key."""
        mean, std = self.dataset.statistics
        images = (images.astype(jnp.float32) / 255 - mean) / std
        model = nnx.merge(self._graph, nnx.State(params), nnx.State(batch_stats))
        if key is None:
            model.eval()
        else:
            model.train()
        logits = model(images, key)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def gradient(self, params, batch_stats, batch: Batch, key) -> tuple[Gradient, Any]:
        """The gradient, and BatchNorm's new averages, of one part after the other."""
        parts = self.config.accumulate
        if parts == 1:
            return self._gradient_of_part(params, batch_stats, batch, key)

        def add(carry, part):
            total, batch_stats = carry
            key, images = part
            found, new = self._gradient_of_part(params, batch_stats, images, key)
            found = found._replace(reference=found.reference**2)
            return (jax.tree.map(jnp.add, total, found), new), None

        nothing = jax.tree.map(jnp.zeros_like, Gradient(params, *[jnp.zeros(())] * 3))
        # Part i is every parts-th image, so that it has images of every device.
        split = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(parts))
        (total, new), _ = jax.lax.scan(add, (nothing, batch_stats), (keys, split))
        mean = jax.tree.map(lambda x: x / parts, total)
        # The prediction gradient of softmax has a mean of zero for each image, so the
        # squares of its scales add up; that of the batch is 1 / parts of it.
        return mean._replace(reference=jnp.sqrt(mean.reference) / parts), new

    def _gradient_of_part(
        self, params, batch_stats, batch: Batch, key
    ) -> tuple[Gradient, Any]:
        def predict(params, batch):
            logits, new = self.logits(params, batch_stats, batch["image"], key)
            return logits, (logits, new)

        def loss(logits, batch):
            labels = jax.nn.one_hot(batch["label"], logits.shape[-1])
            labels = optax.smooth_labels(labels, self.config.label_smoothing)
            return optax.softmax_cross_entropy(logits, labels).mean()

        value_and_grad = sg.value_and_grad_with_reference(predict, loss, has_aux=True)
        (value, (logits, new)), grads, reference = value_and_grad(params, batch)
        accuracy = (logits.argmax(-1) == batch["label"]).mean(dtype=jnp.float32)
        return Gradient(grads, reference, value, accuracy), new

    def optimizer(self, lr) -> optax.GradientTransformationExtraArgs:
        config = self.config
        warmup = int(config.warmup_epochs * self.steps_per_epoch)
        schedule = optax.warmup_cosine_decay_schedule(
            1 / (warmup + 1),  # a rate of zero would waste the first step
            1.0,
            warmup,
            max(self.total_steps, warmup + 1),
        )

        def stack_axis(path, leaf):
            """None: no leaf holds several layers."""

        def rate(count):
            return lr * schedule(count)

        return optax.chain(
            optimizers.scale_control(config.scale_control, stack_axis),
            optimizers.base(config.optimizer, rate, stack_axis, config.weight_decay),
        )


shared_program = functools.lru_cache(maxsize=1)(Program)
