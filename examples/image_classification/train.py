"""Training: a state that is advanced step by step over the devices of a mesh."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.image_classification import data, models
from examples.image_classification.config import SMALL_IMAGE, Config
from examples.image_classification.mesh import Layout
from examples.image_classification.objective import Objective, take_apart
from examples.image_classification.step import Report, State, Step, Totals


class Loaders(NamedTuple):
    """Batches of a run, of which this process reads its part."""

    training: data.Loader
    testing: data.Loader

    @classmethod
    def of(cls, config: Config, dataset: data.Dataset) -> "Loaders":
        def loader(source, train, augment):
            return data.Loader(
                source,
                config.batch_size,
                seed=config.seed,
                train=train,
                augment=augment,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )

        return cls(
            loader(dataset.train, True, augmentation(config)),
            loader(dataset.test, False, data.Augment()),
        )


class Program:
    """The jitted functions of a run, its data, and the state that they advance."""

    def __init__(
        self, config: Config, dataset: data.Dataset, loaders: Loaders, layout: Layout
    ):
        self.config, self.dataset, self.layout = config, dataset, layout
        self._loaders = loaders
        self.steps_per_epoch = loaders.training.steps_per_epoch
        self.total_steps = config.epochs * self.steps_per_epoch
        mean, std = data.statistics(dataset.train)
        form = nnx.eval_shape(lambda: network(config, dataset, nnx.Rngs(0)))
        objective = Objective(
            form, jnp.asarray(mean), jnp.asarray(std), config.label_smoothing
        )
        self._step = Step(config, objective, self.steps_per_epoch)
        self._lr = np.float32(config.lr)
        self._seed = np.uint32(config.seed)
        shapes = jax.eval_shape(self._start, self._seed, self._lr)
        self._shardings = layout.of_state(shapes)
        self._shapes = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            shapes,
            self._shardings,
        )
        self._compiled: Any = None
        self._test = jax.jit(self._step.test, out_shardings=layout.whole)
        self.step = 0
        self.compile_seconds = 0.0
        self.step_seconds: list[float] = []
        """Of each stretch between two looks at the reports, a mean."""
        self.state = jax.jit(self._start, out_shardings=self._shardings)(
            self._seed, self._lr
        )

    def run(self) -> Iterator[tuple[int, list[Report]]]:
        """Advances; yields the number of steps done and the reports since last time.

        It does so every `log_every` steps and at the end of each epoch.
        """
        every = self.config.log_every
        reports: list[Report] = []
        start = time.perf_counter()
        for images in self._loaders.training.batches(self.step, self.total_steps):
            batch = self.layout.put(images)
            arguments = (self.state, batch, np.int32(self.step), self._seed, self._lr)
            if self._compiled is None:
                self._compiled = self._compile(*arguments)
                start = time.perf_counter()
            self.state, report = self._compiled(*arguments)
            reports.append(report)
            self.step += 1
            if self.step % every == 0 or self.at_end_of_epoch:
                reports = jax.device_get(reports)
                self.step_seconds.append((time.perf_counter() - start) / len(reports))
                yield self.step, reports
                reports, start = [], time.perf_counter()

    def test(self) -> Totals:
        """Sums over the test images."""
        variables = self._step.tested(self.state)
        totals = [
            self._test(variables, self.layout.put(batch))
            for batch in self._loaders.testing.epoch()
        ]
        return jax.tree.map(lambda *x: np.float64(sum(x)), *jax.device_get(totals))

    @property
    def training_totals(self) -> Totals:
        """Sums over the training images of this epoch so far."""
        return jax.tree.map(np.float64, jax.device_get(self.state.epoch))

    @property
    def at_end_of_epoch(self) -> bool:
        return self.step % self.steps_per_epoch == 0

    @property
    def epoch(self) -> int:
        """Whole epochs that are done."""
        return self.step // self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def checkpoint(self) -> dict[str, jax.Array]:
        """The state, by the names of its leaves."""
        return _named(self.state)

    def template(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The form of a checkpoint on this mesh; it may be from another."""
        del step
        return _named(self._shapes)

    def restore(self, step: int, checkpoint: dict[str, jax.Array]) -> None:
        """Goes on from a checkpoint."""
        leaves = [checkpoint[name] for name in _named(self._shapes)]
        self.state = jax.tree.unflatten(jax.tree.structure(self._shapes), leaves)
        self.step = step

    def _start(self, seed, lr) -> State:
        rngs = nnx.Rngs(params=jax.random.key(seed))
        _, variables = take_apart(network(self.config, self.dataset, rngs))
        return self._step.init(variables, lr)

    def _compile(self, *arguments):
        """The step, which writes over the state that it is given."""
        start = time.perf_counter()
        step = jax.jit(
            self._step.__call__,
            donate_argnums=0,
            out_shardings=(self._shardings, self.layout.whole),
        )
        compiled = step.lower(*arguments).compile()
        self.compile_seconds += time.perf_counter() - start
        return compiled


def network(config: Config, dataset: data.Dataset, rngs: nnx.Rngs) -> nnx.Module:
    """The network that a configuration names, for a dataset."""
    height, width, channels = dataset.image_shape
    return models.build(
        config.model,
        num_classes=len(dataset.class_names),
        in_channels=channels,
        norm=config.norm,
        width_multiplier=config.width_multiplier,
        small_images=max(height, width) <= SMALL_IMAGE,
        stochastic_depth=config.stochastic_depth,
        initialization=config.initialization,
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


def augmentation(config: Config) -> data.Augment:
    """What is done to training images."""
    usual = data.Augment()
    if config.augment:
        usual = data.default_augment(config.data, config.image_size)
    return dataclasses.replace(usual, mixup=config.mixup)


def load(config: Config) -> data.Dataset:
    """The images that a configuration names."""
    return data.load(config.data, config.data_dir, image_size=config.image_size)


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }
