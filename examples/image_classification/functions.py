"""The jitted functions of a run, shared by runs that differ in rate and seed alone."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from examples.image_classification import data, models
from examples.image_classification.config import SMALL_IMAGE, Config
from examples.image_classification.mesh import Layout
from examples.image_classification.objective import Objective, take_apart
from examples.image_classification.step import State, Step


def load(config: Config) -> data.Dataset:
    """The images that a configuration names; runs of one study read them once."""
    return _load(config.data, config.data_dir, config.image_size)


def functions_of(config: Config) -> "Functions":
    """Of a configuration; runs of a study that share them compile them once."""
    shared = dataclasses.replace(config, out=Path(), resume=False, lr=1.0, seed=0)
    return _functions(shared)


class Functions:
    """What a run calls, on a mesh: all but `step` are jitted, `advance` is compiled."""

    def __init__(self, config: Config):
        self._config, self._dataset = config, load(config)
        self._layout = Layout.of(config)
        mean, std = data.statistics(self._dataset.train)
        form = nnx.eval_shape(lambda: self._network(nnx.Rngs(0)))
        objective = Objective(
            form, jnp.asarray(mean), jnp.asarray(std), config.label_smoothing
        )
        self.steps_per_epoch = len(self._dataset.train) // config.batch_size
        self.step = Step(config, objective, self.steps_per_epoch)
        shapes = jax.eval_shape(self._start, jnp.uint32(0), jnp.float32(0))
        self._shardings = self._layout.of_state(shapes)
        self.shapes = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            shapes,
            self._shardings,
        )
        """Of the state, with the place of each leaf on the mesh."""
        self.start = jax.jit(self._start, out_shardings=self._shardings)
        self.test = jax.jit(self.step.test, out_shardings=self._layout.whole)
        self._advance: Any = None

    def advance(self, *arguments: Any) -> Any:
        """The step, which writes over the state that it is given, and its report."""
        return self._advance(*arguments)

    def compile(self, *arguments: Any) -> float:
        """Compiles the step for its arguments, once; the seconds that it took."""
        if self._advance is not None:
            return 0.0
        start = time.perf_counter()
        step = jax.jit(
            self.step.__call__,
            donate_argnums=0,
            out_shardings=(self._shardings, self._layout.whole),
        )
        self._advance = step.lower(*arguments).compile()
        return time.perf_counter() - start

    def _start(self, seed: jax.Array, lr: jax.Array) -> State:
        rngs = nnx.Rngs(params=jax.random.key(seed))
        _, variables = take_apart(self._network(rngs))
        return self.step.init(variables, lr)

    def _network(self, rngs: nnx.Rngs) -> nnx.Module:
        config, dataset = self._config, self._dataset
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


@functools.lru_cache(maxsize=1)
def _functions(config: Config) -> Functions:
    return Functions(config)


@functools.lru_cache(maxsize=1)
def _load(name: str, data_dir: Path | None, image_size: int | None) -> data.Dataset:
    return data.load(name, data_dir, image_size=image_size)
