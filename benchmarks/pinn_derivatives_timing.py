"""A compiled "residual and gradient" step: what it found, and how long it takes."""

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

# On accelerators less spoils the second derivatives; on a CPU it is what there is.
MATMUL_PRECISION = "highest"


class Step(Protocol):
    """A step that is compiled, here or in another process."""

    laplacian: np.ndarray
    """Δu at the points."""
    loss: float
    gradient_norm: float
    compile_seconds: float
    """To trace and compile."""

    def __call__(self) -> float:
        """Makes a step; its seconds."""

    def close(self) -> None:
        """Frees what it holds."""


class LocalStep:
    """A compiled step in this process."""

    def __init__(
        self,
        laplacian: Callable[[Any, jax.Array], jax.Array],
        loss: Callable[[Any, jax.Array], jax.Array],
        params: Any,
        points: jax.Array,
    ):
        self._inputs = params, points
        self.laplacian = np.asarray(jax.jit(laplacian)(params, points))
        jax.clear_caches()
        start = time.perf_counter()
        lowered = jax.jit(jax.value_and_grad(loss)).lower(params, points)
        self._step = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        value, grads = self._step(params, points)
        squares = [float(np.sum(np.square(g))) for g in jax.tree.leaves(grads)]
        self.loss, self.gradient_norm = float(value), math.sqrt(sum(squares))

    def __call__(self) -> float:
        start = time.perf_counter()
        jax.block_until_ready(self._step(*self._inputs))
        return time.perf_counter() - start

    def close(self) -> None:
        pass
