"""A run in the making: its images, its mesh, its compiled functions and its state."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import stablegrad_optax as sg
from examples.common import optimizers
from examples.common.runs import RunError
from examples.image_classification import data
from examples.image_classification.config import Config
from examples.image_classification.mesh import Layout
from examples.image_classification.models import efficientnet, resnet

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


class Program:
    """A state that is advanced step by step over the devices of a mesh."""

    def __init__(self, config: Config):
        """Checks that the options go together; start() makes the state."""
        self.config = config
        self.layout = Layout.of(config)
        self.dataset = data.load(config.data, config.data_dir, config.image_size)
        number = len(self.dataset.train.labels)
        if config.batch_size > number:
            raise RunError(
                "--batch-size must be at most the number of training images, "
                f"{number}, got {config.batch_size}."
            )
        self.steps_per_epoch = number // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.compile_seconds = 0.0
        self.step_seconds: list[float] = []
        """Means of the steps between two lines of the history."""

    def start(self) -> None:
        """Makes the initial state."""
        # Runs of a study that differ in nothing else share what is compiled.
        shared = dataclasses.replace(
            self.config, out=Path(), resume=False, lr=1.0, seed=0
        )
        self.functions = functions_of(shared)
        self._seed, self._lr = np.uint32(self.config.seed), np.float32(self.config.lr)
        self.state = self.functions.start(self._seed, self._lr)

    def batches(self) -> Iterator[data.Batch]:
        """This process's part of the batches that are left."""
        left = range(self.step, self.total_steps)
        return data.training(self.dataset, self.config, left)

    def advance(self, batch: data.Batch) -> dict[str, Any]:
        """Makes a step; its loss and accuracy, and the gradient's scales before it."""
        arguments = (self.layout.put(batch), np.int32(self.step), self._seed, self._lr)
        self.compile_seconds += self.functions.compile(self.state, *arguments)
        self.state, report = self.functions.advance(self.state, *arguments)
        self.step += 1
        return report

    def test(self) -> dict[str, float]:
        """Means over the test images."""
        sums = [
            self.functions.test(self.state, self.layout.put(batch))
            for batch in data.testing(self.dataset, self.config)
        ]
        loss, right = np.sum(jax.device_get(sums), axis=0, dtype=float)
        number = len(self.dataset.test.labels)
        return {"test_loss": loss / number, "test_accuracy": right / number}


class Functions:
    """The functions of a run, compiled for its mesh. Pure, but for donated memory.

    start(seed, lr) -> state
    advance(state, batch, step, seed, lr) -> state, report; takes the old state's memory
    test(state, batch) -> sums of the loss and of right answers
    """

    def __init__(self, config: Config):
        program = Program(config)
        self.config, self.dataset = config, program.dataset
        self.steps_per_epoch = program.steps_per_epoch
        self.mean, self.std = self.dataset.statistics
        self.graph = nnx.graphdef(nnx.eval_shape(lambda: self.network(nnx.Rngs(0))))
        shapes = jax.eval_shape(self._start, 0, 0.0)
        places = jax.tree.map(program.layout.of_leaf, shapes)
        whole = program.layout.whole
        self.state = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            shapes,
            places,
        )
        """Its shapes on this mesh; a checkpoint may be from another."""
        self.start = jax.jit(self._start, out_shardings=places)
        self.test = jax.jit(self._test, out_shardings=whole)
        self.advance: Any = None
        self._jitted = jax.jit(
            self._advance, donate_argnums=0, out_shardings=(places, whole)
        )

    def compile(self, *arguments: Any) -> float:
        """Compiles `advance` for its arguments, once; the seconds that it took."""
        if self.advance is not None:
            return 0.0
        start = time.perf_counter()
        self.advance = self._jitted.lower(*arguments).compile()
        return time.perf_counter() - start

    def network(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network with its initial parameters."""
        family = resnet if self.config.model in resnet.MODELS else efficientnet
        _, height, _, channels = self.dataset.test.read(np.arange(1)).shape
        classes, small_images = self.dataset.classes, height <= 64
        return family.build(self.config, rngs, classes, channels, small_images)

    def _start(self, seed: jax.Array, lr: jax.Array) -> State:
        model = self.network(nnx.Rngs(params=jax.random.key(seed)))
        _, *variables = nnx.split(model, nnx.Param, nnx.BatchStat)
        params, batch_stats = map(nnx.to_pure_dict, variables)
        average = params if self.config.ema_decay else ()
        optimizer = self.optimizer(lr).init(params)
        return State(params, batch_stats, optimizer, average)

    def _advance(
        self, state: State, batch: Batch, index: jax.Array, seed: jax.Array, lr
    ) -> tuple[State, dict[str, Any]]:
        """Step number `index`, counted from the beginning of the run."""
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

    def _test(self, state: State, batch: Batch) -> jax.Array:
        # If there is an average of the parameters, it is what is tested.
        params = state.average if self.config.ema_decay else state.params
        images, labels = batch["image"], batch["label"]
        logits, _ = self.logits(params, state.batch_stats, images, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.stack([losses, logits.argmax(-1) == labels]) @ batch["weight"]

    def logits(self, params, batch_stats, images, *, train, key=None):
        """Logits, and BatchNorm's new averages."""
        images = (images.astype(jnp.float32) / 255 - self.mean) / self.std
        model = nnx.merge(self.graph, nnx.State(params), nnx.State(batch_stats))
        logits = model(images, train=train, key=key)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def gradient(self, params, batch_stats, batch: Batch, key) -> tuple[Gradient, Any]:
        """The gradient, and BatchNorm's new averages, of one part after the other."""
        parts = self.config.accumulate
        if parts == 1:
            return self.gradient_of_part(params, batch_stats, batch, key)

        def add(carry, part):
            total, batch_stats = carry
            number, images = part
            part_key = jax.random.fold_in(key, number)
            found, batch_stats = self.gradient_of_part(
                params, batch_stats, images, part_key
            )
            found = found._replace(reference=found.reference**2)
            return (jax.tree.map(jnp.add, total, found), batch_stats), None

        nothing = jax.tree.map(jnp.zeros_like, Gradient(params, *[jnp.zeros(())] * 3))
        # Part i is every parts-th image, so that it has images of every device.
        split = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch
        )
        carry = nothing, batch_stats
        (total, new), _ = jax.lax.scan(add, carry, (jnp.arange(parts), split))
        mean = jax.tree.map(lambda x: x / parts, total)
        # The prediction gradient of softmax has a mean of zero for each image, so the
        # squares of its scales add up; that of the batch is 1 / parts of it.
        return mean._replace(reference=jnp.sqrt(mean.reference) / parts), new

    def gradient_of_part(
        self, params, batch_stats, batch: Batch, key
    ) -> tuple[Gradient, Any]:
        def predict(params, batch):
            images = batch["image"]
            logits, new = self.logits(params, batch_stats, images, train=True, key=key)
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
            max(config.epochs * self.steps_per_epoch, warmup + 1),
        )

        def stack_axis(path, leaf):
            """None: no leaf holds several layers."""

        return optax.chain(
            optimizers.scale_control(config.scale_control, stack_axis),
            optimizers.base(
                config.optimizer,
                lambda count: lr * schedule(count),
                stack_axis,
                config.weight_decay,
            ),
        )


functions_of = functools.lru_cache(maxsize=1)(Functions)
