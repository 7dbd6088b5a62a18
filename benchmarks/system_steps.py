"""What the residual of a system costs: Kovasznay flow, beside others' derivatives.

python -m benchmarks.system_steps [--depth 5] [--rounds 40] [--out FILE.json]

A step is the value and the parameter gradient of the mean square of three residuals,
with the same network and points, in the same run, in random order in each round. The
gradients have to agree. Nested jvp and jinns get the layers unrolled, which suits them
best.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import rich

from benchmarks import common
from benchmarks.pinn_derivatives.measure import relative_error
from benchmarks.pinn_derivatives.methods import layers
from examples.pinn import operators
from examples.pinn.config import Config
from examples.pinn.objective import Objective
from examples.pinn.problems import kovasznay

Residuals = Callable[[Any, jax.Array], Any]
"""Maps parameters and points of shape (n, 2) to residuals of shape (n,)."""

PROBLEM = kovasznay.PROBLEM
TOLERANCE = 1e-3
"""Of the gradient, relative to its largest element."""


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """What the residual of a system costs, beside nested derivatives and jinns."""

    depth: int = 5
    """Hidden layers."""
    width: int = 50
    """Units of each hidden layer."""
    points: int = 1024
    """Collocation points."""
    rounds: int = 40
    """Timed steps for each method."""


def unrolled(params: Any, point: jax.Array) -> jax.Array:
    """The fields u, v and p at one point, without a scan."""
    (kernel, bias), *rest = layers(params)
    # DeepNetwork standardises coordinates.
    lower, upper = jnp.asarray(PROBLEM.domain.lower), jnp.asarray(PROBLEM.domain.upper)
    x = math.sqrt(12) * (point - (lower + upper) / 2) / (upper - lower)
    x = x @ kernel + bias
    for kernel, bias in rest:
        x = jnp.tanh(x) @ kernel + bias
    return x


def nested(params: Any, points: jax.Array) -> Any:
    """Each derivative by a jvp, or a jvp of a jvp."""
    found = operators.nested_derivatives(
        partial(unrolled, params), points, PROBLEM.operators, PROBLEM.fields
    )
    del found["p"]  # the residual takes its derivatives alone
    return PROBLEM.residual(points, **found)


def jinns(params: Any, points: jax.Array) -> Any:
    """The operators of jinns, as its own loss of this equation combines them."""
    from jinns.loss import _operators as by_jinns

    def velocity(x, params):
        return unrolled(params, x)[:2]

    def at(x):
        convection = by_jinns._u_dot_nabla_times_u_rev(x, velocity, params)
        pressure = jax.jacrev(lambda x: unrolled(params, x)[2:])(x)[0]
        viscosity = by_jinns.vectorial_laplacian_rev(
            x, velocity, params, dim_out=2, eq_type="PDEStatio"
        )
        momentum = convection + pressure - viscosity / kovasznay.RE
        continuity = by_jinns.divergence_rev(x, velocity, params, eq_type="PDEStatio")
        return {
            "momentum x": momentum[0],
            "momentum y": momentum[1],
            "continuity": jnp.squeeze(continuity),
        }

    return jax.vmap(at)(points)


def main(options: Options) -> int:
    config = Config(
        Path(), problem=PROBLEM.name, depth=options.depth, width=options.width
    )
    objective = Objective(config)
    inside = objective.parts[0]
    points = inside.sample(jax.random.key(0), options.points, jnp.float32)
    params = objective.network.init(jax.random.key(1), points)

    def ours(params, points):
        found = objective.quantities(params, inside, points)
        return PROBLEM.residual(points, **{name: found[name] for name in inside.takes})

    def step_of(residuals: Residuals):
        def loss(params):
            zeros = residuals(params, points)
            return sum(jnp.mean(x**2) for x in zeros.values())

        return jax.jit(jax.value_and_grad(loss))

    found: dict[str, dict[str, Any]] = {}
    steps, gradients = {}, {}
    with jax.default_matmul_precision("highest"):
        for name, residuals in (
            ("ours", ours),
            ("nested jvp", nested),
            ("jinns", jinns),
        ):
            lowered = step_of(residuals).lower(params)
            seconds, compiled = common.seconds_of(lowered.compile)
            _, gradients[name] = compiled(params)
            steps[name] = lambda step=compiled: common.seconds_of(step, params)[0]
            found[name] = {
                "compile_seconds": seconds,
                "error": relative_error(gradients[name], gradients["ours"]),
            }
        for name, times in common.in_turns(steps, options.rounds, "steps").items():
            found[name]["seconds"] = times
    title = f"Kovasznay flow, {options.depth} layers of {options.width}"
    rich.print(common.time_table(title, found, compile_seconds=".1f", error=".1e"))
    common.save(options, {"methods": found})
    return int(any(method["error"] > TOLERANCE for method in found.values()))


if __name__ == "__main__":
    common.run(Options, main)
