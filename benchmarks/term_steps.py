"""What a training step costs with balanced loss terms, over one with weighted terms.

python -m benchmarks.term_steps [--depth 64] [--rounds 20] [--out FILE.json]

The Poisson problem of examples/pinn, whose residual and boundary are on different
points, with adam. "one loss" is the step without this library: jax.grad of the weighted
sum. All are timed in the same run, in random order in each round.
"""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import optax

import stablegrad_optax as sg
from benchmarks import common
from benchmarks.loss_terms.methods import METHODS
from examples.pinn.config import Config
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
TERMS = ("residual", "boundary")
WEIGHT = 100.0
"""Of the boundary, for weighted terms."""


def main(options: Options) -> None:
    config = Config(
        Path(), depth=options.depth, width=options.width,
        interior_points=options.points, condition_points=options.points // 4,
    )  # fmt: skip
    objective = Objective(config)
    params = objective.initial_params(jax.random.key(1))

    def losses(params, points):
        return objective.terms(params, points)[0]

    def loss(params, points):
        values = losses(params, points)
        return values["residual"] + WEIGHT * values["boundary"]

    terms = sg.value_and_grad_of_terms(losses)
    methods = {
        "one loss": (jax.value_and_grad(loss), optax.identity()),
        "balanced terms": (terms, METHODS["balanced"](TERMS, 1000)),
        "weighted sum of terms": (terms, METHODS["weight"](TERMS, 1000, weight=1.0)),
    }

    def several_steps(gradients, front):
        tx = optax.with_extra_args_support(optax.chain(front, optax.adam(1e-3)))

        def step(i, carry):
            params, state = carry
            points = objective.sample(jax.random.key(i), options.points)
            values, grads = gradients(params, points)
            updates, state = tx.update(
                grads, state, params, values=values, weight=WEIGHT
            )
            return optax.apply_updates(params, updates), state

        @jax.jit
        def steps(carry):
            return jax.lax.fori_loop(0, STEPS, step, carry)

        carry = params, tx.init(params)
        seconds, compiled = common.seconds_of(steps.lower(carry).compile)
        return {"compile_seconds": seconds}, common.repeated(compiled, carry)

    found = common.compare(
        {name: partial(several_steps, *method) for name, method in methods.items()},
        options.rounds,
    )
    for numbers in found.values():
        numbers["seconds"] = [seconds / STEPS for seconds in numbers["seconds"]]
    title = f"a step, {options.depth} layers of {options.width}"
    common.show(title, found, compile_seconds=".1f")
    common.save(options, {"methods": found})


if __name__ == "__main__":
    common.run(Options, main)
