"""What is minimised: the network that a configuration names, and its loss."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

import stablegrad_optax as sg
from examples.common.runs import RunError
from examples.pinn import operators
from examples.pinn.config import Config
from examples.pinn.network import DeepNetwork
from examples.pinn.problems import PROBLEMS, Problem

ACTIVATIONS: dict[str, operators.Activation] = {
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
}

# More points at once are no faster on a CPU, and take memory: some 140 MB for each
# column of 64 layers of 32.
CPU_BLOCK = 4096


def network_of(config: Config) -> DeepNetwork:
    """The network that a configuration names."""
    problem = PROBLEMS[config.problem]
    activation = ACTIVATIONS[config.activation]
    initializers: dict[str, Callable[[], Any]] = {
        "glorot": jax.nn.initializers.glorot_normal,
        "critical": functools.partial(sg.initializers.critical, activation),
        "variance-preserving": functools.partial(
            sg.initializers.variance_preserving, activation
        ),
    }
    try:
        kernel_init = initializers[config.initialization]()
    except ValueError as error:
        raise RunError(
            f"--initialization {config.initialization} does not go with --activation "
            f"{config.activation}: {error}"
        ) from None
    return DeepNetwork(
        depth=config.depth,
        width=config.width,
        lower=problem.lower,
        upper=problem.upper,
        activation=activation,
        kernel_init=kernel_init,
    )


def values(network: DeepNetwork, params: Any, points: jax.Array) -> jax.Array:
    """The network's u at points of shape (n, dimension)."""
    return cast(dict[str, jax.Array], network.apply(params, points))["u"]


class Objective:
    """The loss of a problem: mean squares of the residual and of the conditions."""

    def __init__(self, config: Config, problem: Problem, network: DeepNetwork):
        self.config, self.problem, self.network = config, problem, network
        self.sweep = operators.Sweep.of(problem.operators)
        on_cpu = jax.default_backend() == "cpu"
        self.block = CPU_BLOCK if on_cpu else None

    def sample(self, key: jax.Array, interior: int) -> dict[str, jax.Array]:
        """Points inside and on each condition's part of the boundary, by name."""
        config, problem = self.config, self.problem
        keys = jax.random.split(key, 1 + len(problem.conditions))
        points = {"interior": problem.sample_interior(keys[0], interior, config.dtype)}
        for key, condition in zip(keys[1:], problem.conditions, strict=True):
            points[condition.name] = problem.sample_condition(
                condition, key, config.condition_points, config.dtype
            )
        return points

    def predict(self, params: Any, points: dict[str, jax.Array]) -> dict[str, Any]:
        """What the network says: u and its derivatives inside, u on the conditions."""

        def inside(x):
            return self.network.apply(params, x, self.sweep)

        predictions = {
            name: values(self.network, params, x)
            for name, x in points.items()
            if name != "interior"
        }
        interior = operators.in_blocks(inside, points["interior"], self.block)
        return predictions | {"interior": interior}

    def loss(self, predictions: dict[str, Any], points: dict[str, jax.Array]):
        """One number for what the network says."""
        residual = self.problem.residual(points["interior"], **predictions["interior"])
        total = jnp.mean(residual**2)
        for condition in self.problem.conditions:
            target = condition.target(points[condition.name])
            deviation = predictions[condition.name] - target
            total += self.config.condition_weight * jnp.mean(deviation**2)
        return total
