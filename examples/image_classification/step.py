"""One step of training: gradient, scale control, update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import stablegrad_optax as sg
from examples.common import optimizers
from examples.image_classification.config import Config
from examples.image_classification.objective import Batch, Objective, Variables


class Totals(NamedTuple):
    """Sums over images."""

    loss: jax.Array
    correct: jax.Array
    images: jax.Array


class State(NamedTuple):
    """What a step updates: all that a checkpoint holds."""

    variables: Variables
    optimizer: Any
    average: Any
    """Moving average of the parameters; empty without one."""
    epoch: Totals


class Report(NamedTuple):
    """What is recorded of a step."""

    loss: Any
    layer_scales: dict[str, Any]
    """Of the gradient before it is rescaled, by layer."""


class Gradient(NamedTuple):
    """Of a batch, or of a part of it."""

    loss: jax.Array
    grads: Any
    reference: jax.Array
    """The scale of the prediction gradient."""
    correct: jax.Array


class Step:
    """The step of a configuration, of `steps_per_epoch` steps in an epoch."""

    def __init__(self, config: Config, objective: Objective, steps_per_epoch: int):
        self.config, self.objective = config, objective
        self.steps_per_epoch = steps_per_epoch

    def init(self, variables: Variables, lr: jax.Array) -> State:
        average = variables.params if self.config.ema_decay else ()
        optimizer = self._optimizer(lr).init(variables.params)
        totals = Totals(*(jnp.zeros(()) for _ in Totals._fields))
        return State(variables, optimizer, average, totals)

    def __call__(
        self, state: State, batch: Batch, index: jax.Array, seed: jax.Array, lr
    ) -> tuple[State, Report]:
        """Step number `index`, counted from the beginning of the run."""
        config, params = self.config, state.variables.params
        key = jax.random.fold_in(jax.random.key(seed), index)
        gradient, batch_stats = self._gradient(state.variables, batch, key)
        extra = {}
        if config.scale_control == "stablegrad-prediction":
            extra = {"reference": gradient.reference}
        updates, optimizer = self._optimizer(lr).update(
            gradient.grads, state.optimizer, params, **extra
        )
        params = optax.apply_updates(params, updates)
        average = state.average
        if config.ema_decay:
            average = optax.incremental_update(params, average, 1 - config.ema_decay)
        # The sums start at zero with each epoch.
        first = index % self.steps_per_epoch == 0
        before = jax.tree.map(lambda x: jnp.where(first, 0, x), state.epoch)
        size = len(batch["label"])
        totals = Totals(
            before.loss + gradient.loss * size,
            before.correct + gradient.correct,
            before.images + size,
        )
        state = State(Variables(params, batch_stats), optimizer, average, totals)
        return state, Report(gradient.loss, sg.layer_scales(gradient.grads))

    def test(self, state: State, batch: Batch) -> Totals:
        """Sums over a batch, weighted: padding has a weight of 0.

        If there is an average of the parameters, it is what is tested.
        """
        variables = state.variables
        if self.config.ema_decay:
            variables = variables._replace(params=state.average)
        logits = self.objective.logits(variables, batch["image"])
        weight, labels = batch["weight"], batch["label"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = logits.argmax(-1) == labels
        return Totals(*((weight * x).sum() for x in (losses, correct, weight)))

    def _optimizer(self, lr) -> optax.GradientTransformationExtraArgs:
        config = self.config
        return optax.chain(
            optimizers.scale_control(
                config.scale_control,
                _unstacked,
                group_by=config.group_by,
                statistic=config.statistic,
            ),
            optimizers.base(
                config.optimizer,
                lambda count: lr * self._shape(count),
                _unstacked,
                config.weight_decay,
            ),
        )

    def _shape(self, count) -> jax.Array:
        """The learning rate, relative to its peak."""
        warmup = int(self.config.warmup_epochs * self.steps_per_epoch)
        first = 1 / (warmup + 1)  # a rate of zero would waste the first step
        if self.config.schedule == "constant":
            return optax.warmup_constant_schedule(first, 1.0, warmup)(count)
        steps = max(self.config.epochs * self.steps_per_epoch, warmup + 1)
        return optax.warmup_cosine_decay_schedule(first, 1.0, warmup, steps)(count)

    def _gradient(self, variables: Variables, batch: Batch, key):
        """The gradient of a batch, accumulated over its parts."""
        parts = self.config.accumulate
        if parts == 1:
            return self._part(variables, batch, key)

        def add(carry, part):
            total, batch_stats = carry
            number, images = part
            before = Variables(variables.params, batch_stats)
            part_key = jax.random.fold_in(key, number)
            gradient, batch_stats = self._part(before, images, part_key)
            gradient = gradient._replace(reference=gradient.reference**2)
            return (jax.tree.map(jnp.add, total, gradient), batch_stats), None

        nothing = jnp.zeros(())
        grads = jax.tree.map(jnp.zeros_like, variables.params)
        start = Gradient(nothing, grads, nothing, nothing), variables.batch_stats
        # Part i is every parts-th image, so that it has images of every device.
        split = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch
        )
        carry, _ = jax.lax.scan(add, start, (jnp.arange(parts), split))
        total, batch_stats = carry
        mean = jax.tree.map(lambda x: x / parts, total)
        # The prediction gradient of softmax has a mean of zero for each image, so the
        # squares of its scales add up; that of the batch is 1 / parts of it.
        reference = jnp.sqrt(mean.reference) / parts
        return mean._replace(reference=reference, correct=total.correct), batch_stats

    def _part(self, variables: Variables, batch: Batch, key):
        params, batch_stats = variables

        def predict(params, batch):
            logits, new = self.objective.predict(params, batch_stats, batch, key)
            return logits, (logits, new)

        value_and_grad = sg.value_and_grad_with_reference(
            predict, self.objective.loss, has_aux=True
        )
        (loss, (logits, new)), grads, reference = value_and_grad(params, batch)
        correct = (logits.argmax(-1) == batch["label"]).sum().astype(jnp.float32)
        return Gradient(loss, grads, reference, correct), new


def _unstacked(path: tuple[Any, ...], leaf: Any) -> None:
    """No leaf holds several layers."""
    del path, leaf
