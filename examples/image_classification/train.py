"""Training: a state that is advanced step by step over the devices of a mesh."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from examples.image_classification import data
from examples.image_classification.config import Config
from examples.image_classification.functions import functions_of, load
from examples.image_classification.mesh import Layout
from examples.image_classification.step import Report, Totals


class Program:
    """The state of a run and its data, of which each process reads its part."""

    def __init__(self, config: Config):
        """Finds out whether options go together; start() begins."""
        self.config = config
        self.layout, self.dataset = Layout.of(config), load(config)
        self._training = self._loader(self.dataset.train, augmentation(config))
        self._testing = self._loader(self.dataset.test, None)
        self.steps_per_epoch = self._training.steps_per_epoch
        self.total_steps = config.epochs * self.steps_per_epoch
        self._lr, self._seed = np.float32(config.lr), np.uint32(config.seed)
        self.step = 0
        self.compile_seconds = 0.0
        self.step_seconds: list[float] = []
        """Of each stretch between two looks at the reports, a mean."""

    def start(self) -> None:
        """Makes the initial state."""
        self.functions = functions_of(self.config)
        self.state = self.functions.start(self._seed, self._lr)

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """This process's part of the batches that are left."""
        return self._training.batches(self.step, self.total_steps)

    def run(self) -> Iterator[tuple[int, list[Report]]]:
        """Advances; yields the number of steps done and the reports since last time.

        It does so every `log_every` steps and at the end of each epoch.
        """
        every = self.config.log_every
        reports: list[Report] = []
        start = time.perf_counter()
        for images in self.batches():
            batch = self.layout.put(images)
            arguments = (self.state, batch, np.int32(self.step), self._seed, self._lr)
            if not reports and not self.step_seconds:
                self.compile_seconds += self.functions.compile(*arguments)
                start = time.perf_counter()
            self.state, report = self.functions.advance(*arguments)
            reports.append(report)
            self.step += 1
            if self.step % every == 0 or self.at_end_of_epoch:
                reports = jax.device_get(reports)
                self.step_seconds.append((time.perf_counter() - start) / len(reports))
                yield self.step, reports
                reports, start = [], time.perf_counter()

    def test(self) -> Totals:
        """Sums over the test images."""
        variables = self.functions.step.tested(self.state)
        totals = [
            self.functions.test(variables, self.layout.put(batch))
            for batch in self._testing.epoch()
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
        return named(self.state)

    def template(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The form of a checkpoint on this mesh; it may be from another."""
        del step
        return named(self.functions.shapes)

    def restore(self, step: int, checkpoint: dict[str, jax.Array]) -> None:
        """Goes on from a checkpoint."""
        leaves = [checkpoint[name] for name in named(self.functions.shapes)]
        self.state = jax.tree.unflatten(
            jax.tree.structure(self.functions.shapes), leaves
        )
        self.step = step

    def _loader(self, source: data.Source, augment: data.Augment | None) -> data.Loader:
        """Of training images if there is an augmentation, were it to do nothing."""
        return data.Loader(
            source,
            self.config.batch_size,
            seed=self.config.seed,
            train=augment is not None,
            augment=augment or data.Augment(),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def augmentation(config: Config) -> data.Augment:
    """What is done to training images."""
    usual = data.Augment()
    if config.augment:
        usual = data.default_augment(config.data)
    return dataclasses.replace(usual, mixup=config.mixup)


def named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }
