"""What a training step costs with balanced loss terms, over one with weighted terms.

python -m benchmarks.term_steps [--depth 64] [--rounds 20] [--out FILE.json]

The Poisson problem of examples/pinn, whose residual and boundary are on different
points, with adam. "one loss" is the step without this library: jax.grad of the weighted
sum. All are timed in the same run, in random order in each round.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import rich

import stablegrad_optax as sg
from benchmarks import common
from examples.common import optimizers
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import Objective


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """What a training step costs with balanced terms, over one with weighted terms."""

    depth: int = 64
    """Hidden layers."""
    width: int = 32
    """Units of each hidden layer."""
    points: int = 256
    """Points inside; a quarter as many on the boundary."""
    rounds: int = 20
    """Timed rounds, of ten steps each."""


STEPS = 10


def gradients(objective: Objective) -> dict[str, Callable[[Any, Any], Any]]:
    """Ways to the gradient from parameters and points."""

    def one_loss(params, points):
        return jax.grad(lambda p: objective.weighted(p, points))(params)

    def of_terms(combine):
        def gradient(params, points):
            losses = sg.value_and_grad_of_terms(lambda p: objective.terms(p, points)[0])
            values, grads = losses(params)
            return combine(grads, values)

        return gradient

    return {
        "one loss": one_loss,
        "balanced terms": of_terms(lambda grads, _: sg.balance_terms(grads)),
        "weighted sum of terms": of_terms(objective.combine),
    }


def main(options: Options) -> None:
    config = Config(
        Path(), depth=options.depth, width=options.width, terms="weighted",
        interior_points=options.points, condition_points=options.points // 4,
    )  # fmt: skip
    objective = Objective(config)
    tx = optimizers.base("adam", 1e-3, stack_axis)
    points = objective.sample(jax.random.key(0), options.points)
    params = objective.network.init(jax.random.key(1), points["residual"])

    def several_steps(gradient):
        def step(i, carry):
            params, state = carry
            points = objective.sample(jax.random.key(i), options.points)
            updates, state = tx.update(gradient(params, points), state, params)
            return optax.apply_updates(params, updates), state

        return lambda carry: jax.lax.fori_loop(0, STEPS, step, carry)

    carry = params, tx.init(params)
    steps, compiling = {}, {}
    for name, gradient in gradients(objective).items():
        lowered = jax.jit(several_steps(gradient)).lower(carry)
        compiling[name], compiled = common.seconds_of(lowered.compile)
        steps[name] = common.repeated(compiled, carry)
    seconds = common.in_turns(steps, options.rounds, "steps")
    found = {
        name: {
            "seconds": list(np.array(times) / STEPS),
            "compile_seconds": compiling[name],
        }
        for name, times in seconds.items()
    }
    title = f"a step, {options.depth} layers of {options.width}"
    rich.print(common.time_table(title, found, compile_seconds=".1f"))
    common.save(options, {"methods": found})


if __name__ == "__main__":
    common.run(Options, main)
