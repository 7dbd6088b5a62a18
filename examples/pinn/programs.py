"""The phases of a run as compiled programs, and how long their steps take."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.columns import Column, advance, begin
from examples.pinn.step import Phase


class Program(NamedTuple):
    """A phase for all columns of a run."""

    phase: Phase
    begin: Callable[[Column], Column]
    """Gives the columns the optimizer state of the phase."""
    advance: Callable[..., tuple[Column, dict[str, Any]]]
    """Steps `first` to `end`, and a report; takes the memory of the columns."""


def compiled(phase: Phase, columns: Column) -> Program:
    """The program of a phase, for columns of these shapes."""
    begin_all = jax.jit(functools.partial(begin, phase))
    chunk = jax.vmap(functools.partial(advance, phase), (0, None, None))
    shapes = jax.eval_shape(begin_all, columns._replace(state=()))
    jitted = jax.jit(chunk, donate_argnums=0)
    of_steps = jitted.lower(shapes, np.int32(0), np.int32(1)).compile()
    return Program(phase, lambda x: begin_all(x._replace(state=())), of_steps)


def seconds_of_step(program: Program, columns: Column) -> float:
    """How long a step takes, by a few that are thrown away."""
    first, seconds = program.phase.first, 0.0
    for steps in (1, 3):  # the first to warm up
        # A copy: the program takes the memory of what it is given.
        begun = jax.tree.map(jnp.copy, program.begin(columns))
        jax.block_until_ready(begun)
        start = time.perf_counter()
        result = program.advance(begun, np.int32(first), np.int32(first + steps))
        jax.block_until_ready(result)
        seconds = (time.perf_counter() - start) / steps
    return seconds


def costs(
    phases: Sequence[Phase], seconds: Sequence[float], first: int, end: int
) -> list[float]:
    """How many seconds of steps `first` to `end` each phase takes.

    `seconds` are those of a step of each phase.
    """
    return [
        of_step * max(min(end, phase.end) - max(first, phase.first), 0)
        for phase, of_step in zip(phases, seconds, strict=True)
    ]
