"""Training: a state that is advanced step by step over the devices of a mesh."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from examples.image_classification import data, models
from examples.image_classification.config import SMALL_IMAGE, Config
from examples.image_classification.mesh import Layout
from examples.image_classification.objective import Objective, take_apart
from examples.image_classification.step import Report, State, Step

load = functools.lru_cache(maxsize=1)(data.load)
"""Reads the images of a study once."""


class Program:
    """The state of a run and its batches, of which each process reads its part."""

    def __init__(self, config: Config):
        """Checks that the options go together; start() makes the state."""
        self.config = config
        self.layout = Layout.of(config)
        self.dataset = load(config.data, config.data_dir, config.image_size)
        self._loader = data.Loader(
            self.dataset,
            config.batch_size,
            seed=config.seed,
            augment=config.augment,
            mixup=config.mixup,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.steps_per_epoch = self._loader.steps_per_epoch
        self.total_steps = config.epochs * self.steps_per_epoch
        self._lr, self._seed = np.float32(config.lr), np.uint32(config.seed)
        self.step = 0
        self.compile_seconds = 0.0
        self.step_seconds: list[float] = []
        """Mean of each stretch of steps between two reports."""

    def start(self) -> None:
        """Makes the initial state."""
        # Runs of a study that differ in nothing else share what is compiled.
        shared = dataclasses.replace(
            self.config, out=Path(), resume=False, lr=1.0, seed=0
        )
        self.functions = functions_of(shared)
        self.state = self.functions.start(self._seed, self._lr)

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """This process's part of the batches that are left."""
        return self._loader.training(self.step, self.total_steps)

    def run(self) -> Iterator[tuple[int, list[Report]]]:
        """Trains; yields the number of steps done and the reports since last time.

        It does so every `log_every` steps and at the end of each epoch.
        """
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
            if self.step % self.config.log_every == 0 or self.at_end_of_epoch:
                reports = jax.device_get(reports)
                self.step_seconds.append((time.perf_counter() - start) / len(reports))
                yield self.step, reports
                reports, start = [], time.perf_counter()

    def results_of_epoch(self) -> dict[str, float]:
        """Means over the training steps of this epoch, and over the test images."""
        tested = [
            self.functions.test(self.state, self.layout.put(batch))
            for batch in self._loader.testing()
        ]
        found = {}
        for name, parts in (("train", [self.state.epoch]), ("test", tested)):
            sums = np.array(jax.device_get(parts), np.float64).sum(axis=0)
            found[f"{name}_loss"] = float(sums[0] / sums[2])
            found[f"{name}_accuracy"] = float(sums[1] / sums[2])
        return found

    @property
    def at_end_of_epoch(self) -> bool:
        return self.step % self.steps_per_epoch == 0

    def template(self, step: int) -> State:
        """Shapes of a checkpoint on this mesh; it may be from another."""
        del step
        return self.functions.state

    def restore(self, step: int, state: State) -> None:
        """Goes on from a checkpoint."""
        self.step, self.state = step, state


class Functions:
    """The compiled functions of a run, on its mesh.

    start(seed, lr) -> state
    advance(state, batch, step, seed, lr) -> state, report; takes the old state's memory
    test(state, batch) -> totals
    """

    def __init__(self, config: Config):
        dataset = load(config.data, config.data_dir, config.image_size)
        layout = Layout.of(config)
        form = nnx.eval_shape(lambda: network(config, dataset, nnx.Rngs(0)))
        mean, std = data.statistics(dataset.train)
        objective = Objective(form, mean, std, config.label_smoothing)
        step = Step(config, objective, len(dataset.train.labels) // config.batch_size)

        def start(seed: jax.Array, lr: jax.Array) -> State:
            rngs = nnx.Rngs(params=jax.random.key(seed))
            _, variables = take_apart(network(config, dataset, rngs))
            return step.init(variables, lr)

        self.state = layout.placed(jax.eval_shape(start, 0, 0.0))
        """Its shapes, with the place of each leaf on the mesh."""
        shardings = jax.tree.map(lambda x: x.sharding, self.state)
        self.start = jax.jit(start, out_shardings=shardings)
        self.test = jax.jit(step.test, out_shardings=layout.whole)
        self._step = jax.jit(
            step, donate_argnums=0, out_shardings=(shardings, layout.whole)
        )
        self.advance: Any = None

    def compile(self, *arguments: Any) -> float:
        """Compiles `advance` for its arguments, once; the seconds that it took."""
        if self.advance is not None:
            return 0.0
        start = time.perf_counter()
        self.advance = self._step.lower(*arguments).compile()
        return time.perf_counter() - start


functions_of = functools.lru_cache(maxsize=1)(Functions)


def network(config: Config, dataset: data.Dataset, rngs: nnx.Rngs) -> models.Network:
    """The network of a configuration, with its initial parameters."""
    height, width, channels = dataset.image_shape
    small = max(height, width) <= SMALL_IMAGE
    layers = models.Layers(config, rngs, dataset.classes, channels, small)
    return models.build(layers)
