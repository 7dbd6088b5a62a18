"""What each method's step costs, and whether its derivatives are right."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from rich.progress import track

from benchmarks.common import in_turns, seconds_of
from benchmarks.pinn_derivatives.methods import Function, nested_jvp
from examples.pinn.config import Config
from examples.pinn.train import Program


def mean_square_residual(laplacian: Function, params: Any, points: jax.Array):
    """The loss of Δu = f."""
    source = -2 * jnp.pi**2 * jnp.prod(jnp.sin(jnp.pi * points), axis=-1)
    return jnp.mean((laplacian(params, points) - source) ** 2)


def measure(
    methods: Mapping[str, Function], params: Any, points: jax.Array, rounds: int
) -> dict[str, Any]:
    """Of each method the error, the time to compile, and the times of its steps.

    The error is that of the Laplacian or of the gradient, whichever is larger.
    """
    loss = partial(mean_square_residual, nested_jvp)
    exact = [
        in_double_precision(f, params, points) for f in (nested_jvp, jax.grad(loss))
    ]
    found: dict[str, Any] = {}
    steps = {}
    for name, laplacian in track(methods.items(), "compiling"):
        loss = partial(mean_square_residual, laplacian)
        try:
            values = jax.jit(laplacian)(params, points)
        except ImportError as missing:
            print(f"{name} is left out: {missing}")
            continue
        jax.clear_caches()
        lower = jax.jit(jax.value_and_grad(loss)).lower
        seconds, step = seconds_of(lambda f=lower: f(params, points).compile())
        _, gradient = step(params, points)
        errors = list(map(relative_error, (values, gradient), exact))
        found[name] = {"error": float(np.max(errors)), "compile_seconds": seconds}
        steps[name] = lambda f=step: seconds_of(f, params, points)[0]
    for name, times in in_turns(steps, rounds, "steps").items():
        found[name]["seconds"] = times
    return found


def relative_error(tree: Any, exact: Any) -> float:
    """The largest deviation, relative to the largest element."""
    x, y = ravel_pytree(tree)[0], ravel_pytree(exact)[0]
    return float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y)))


def in_double_precision(f: Callable[..., Any], *args: Any) -> Any:
    """The value of f at the same arguments in float64."""
    args = jax.tree.map(np.asarray, args)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), args)
        return jax.tree.map(np.asarray, jax.jit(f)(*wide))


def compile_seconds(depths: tuple[int, ...], rounds: int) -> dict[str, list[float]]:
    """The time to trace and compile the training program's first chunk, by depth."""

    def compile_at(depth):
        jax.clear_caches()
        program = Program(Config(out=Path(), depth=depth, steps=1, chunk=1))
        next(program.run())
        return program.compile_seconds

    programs = {str(depth): partial(compile_at, depth) for depth in depths}
    return in_turns(programs, rounds, "compiling the training program")
