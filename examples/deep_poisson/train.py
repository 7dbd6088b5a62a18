"""Training: all seeds of a method in one jitted program, steps inside lax.scan."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import stablegrad_optax as sg
from examples.deep_poisson import model, problem


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, and for how long."""

    depth: int = 64
    """Hidden layers."""
    width: int = 32
    """Units in each hidden layer."""
    steps: int = 2000
    """Optimizer steps."""
    lr: float = 1e-3
    """Learning rate at the start; it falls to zero along a cosine."""
    seeds: int = 3
    """Initial parameters and point sequences, the same for each method."""
    interior_points: int = 128
    """Collocation points inside the domain, sampled anew at each step."""
    boundary_points: int = 32
    """Points on the boundary, sampled anew at each step."""
    boundary_weight: float = 100.0
    """Weight of the boundary's mean square beside that of the residual."""
    chunk: int = 50
    """Steps between two looks at the error."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value <= 0:
                raise ValueError(f"{field.name} must be positive, got {value}.")
        if self.depth < 2:
            raise ValueError(f"depth must be at least 2, got {self.depth}.")
        if self.steps % self.chunk:
            raise ValueError(
                f"steps must be a multiple of chunk ({self.chunk}), got {self.steps}."
            )


def methods(config: Config) -> dict[str, optax.GradientTransformation]:
    """The optimizers that are compared."""
    adam = optax.adam(optax.cosine_decay_schedule(config.lr, config.steps))
    return {
        "adam": adam,
        "clip + adam": optax.chain(optax.clip_by_global_norm(1.0), adam),
        "StableGrad + adam": optax.chain(
            sg.stablegrad(stack_axis=model.stack_axis), adam
        ),
    }


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after some steps; arrays have a leading axis of seeds."""

    step: int
    errors: np.ndarray
    scales: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run of all seeds of one method."""

    history: list[Progress]
    fields: np.ndarray  # (seeds, resolution, resolution)
    steps_per_second: float
    compile_seconds: float

    @property
    def errors(self) -> np.ndarray:
        return self.history[-1].errors


RESOLUTION = 101


def train(
    optimizer: optax.GradientTransformation,
    config: Config,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Trains all seeds together; calls back after each chunk of steps."""
    program = _Program(optimizer, config)
    start = time.perf_counter()
    program.compile()
    compiled = time.perf_counter()
    history = []
    for progress in program.run():
        history.append(progress)
        on_progress(progress)
    seconds = time.perf_counter() - compiled
    return Result(
        history,
        program.fields(),
        steps_per_second=config.steps / seconds,
        compile_seconds=compiled - start,
    )


class _Program:
    """The jitted functions of one method and the state they advance."""

    def __init__(self, optimizer: optax.GradientTransformation, config: Config):
        self.config = config
        self.network = model.DeepNetwork(config.depth, config.width)
        self.points = problem.grid(RESOLUTION)
        step = functools.partial(_step, self.network, optimizer, config)
        measure = functools.partial(_measure, self.network, config, self.points)

        def advance(carry, keys):
            carry, grads = jax.lax.scan(step, carry, keys[:-1])
            del grads
            carry, grads = step(carry, keys[-1])
            return carry, measure(carry[0], grads)

        def start(seed):
            params = self.network.init(jax.random.key(seed), jnp.zeros((1, 2)))
            return params, optimizer.init(params)

        self._advance: Any = jax.jit(jax.vmap(advance), donate_argnums=0)
        self.carry = jax.jit(jax.vmap(start))(jnp.arange(config.seeds))

    def compile(self) -> None:
        self._advance = self._advance.lower(self.carry, self._keys(0)).compile()

    def run(self) -> Iterator[Progress]:
        for first in range(0, self.config.steps, self.config.chunk):
            self.carry, (errors, scales) = self._advance(self.carry, self._keys(first))
            yield Progress(
                first + self.config.chunk,
                np.asarray(errors),
                {name: np.asarray(scale) for name, scale in scales.items()},
            )

    def fields(self) -> np.ndarray:
        params, _ = self.carry
        predict = jax.vmap(lambda p: self.network.apply(p, self.points))
        return np.asarray(jax.jit(predict)(params))

    def _keys(self, first: int) -> jax.Array:
        """Keys of the points of a chunk: (seeds, chunk); the same for every method."""

        def key(seed, step):
            return jax.random.fold_in(jax.random.key(1000 + seed), step)

        seeds = jnp.arange(self.config.seeds)[:, None]
        steps = first + jnp.arange(self.config.chunk)[None, :]
        return jax.vmap(jax.vmap(key, (None, 0)), (0, None))(seeds[:, 0], steps[0])


def _loss(params, network, config, interior, boundary):
    """Mean square of the residual, and of the weighted boundary values."""
    _, laplacian = model.value_and_laplacian(params, interior)
    residual = laplacian - problem.source(interior)
    on_boundary = network.apply(params, boundary)
    return jnp.mean(residual**2) + config.boundary_weight * jnp.mean(on_boundary**2)


def _step(network, optimizer, config, carry, key):
    params, state = carry
    interior_key, boundary_key = jax.random.split(key)
    interior = problem.sample_interior(interior_key, config.interior_points)
    boundary = problem.sample_boundary(boundary_key, config.boundary_points)
    grads = jax.grad(_loss)(params, network, config, interior, boundary)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), grads


def _measure(network, config, points, params, grads):
    """Relative L2 error, and the layer scales of the gradient that backprop gave."""
    exact = problem.exact(points)
    error = jnp.linalg.norm(network.apply(params, points) - exact)
    scales = sg.layer_scales(grads, stack_axis=model.stack_axis)
    return error / jnp.linalg.norm(exact), scales
