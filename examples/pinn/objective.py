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
from examples.pinn.problems import PROBLEMS

ACTIVATIONS: dict[str, operators.Activation] = {
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
}

INITIALIZERS: dict[str, Callable[[operators.Activation], Any]] = {
    "glorot": lambda activation: jax.nn.initializers.glorot_normal(),
    "critical": sg.initializers.critical,
    "variance-preserving": sg.initializers.variance_preserving,
}

# More points at once are no faster on a CPU and take memory: about 140 MB for each
# column of 64 layers of 32.
CPU_BLOCK = 4096


def network_of(config: Config) -> DeepNetwork:
    """The network that a configuration names."""
    problem, activation = PROBLEMS[config.problem], ACTIVATIONS[config.activation]
    try:
        kernel_init = INITIALIZERS[config.initialization](activation)
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
    """The terms of a problem's loss: the residual, and each condition by its name.

    Points, predictions and losses are dicts with one entry for each term.
    """

    def __init__(self, config: Config):
        self.config = config
        self.problem = PROBLEMS[config.problem]
        self.network = network_of(config)
        self.sweep = operators.Sweep.of(self.problem.operators)
        self.block = CPU_BLOCK if jax.default_backend() == "cpu" else None

    def sample(self, key: jax.Array, interior: int) -> dict[str, jax.Array]:
        """Points inside, and on each condition's part of the boundary."""
        config, problem = self.config, self.problem
        key, *keys = jax.random.split(key, 1 + len(problem.conditions))
        points = {"residual": problem.sample_interior(key, interior, config.dtype)}
        for key, condition in zip(keys, problem.conditions, strict=True):
            points[condition.name] = problem.sample_condition(
                condition, key, config.condition_points, config.dtype
            )
        return points

    def predict(self, params: Any, points: dict[str, jax.Array]) -> dict[str, Any]:
        """What the network says: u and its derivatives inside, u on the conditions."""
        apply = functools.partial(self.network.apply, params, sweep=self.sweep)
        inside = operators.in_blocks(apply, points["residual"], self.block)
        return {"residual": inside} | {
            condition.name: values(self.network, params, points[condition.name])
            for condition in self.problem.conditions
        }

    def losses(
        self, predictions: dict[str, Any], points: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """The mean square of each term, without weights."""
        deviations = {
            "residual": self.problem.residual(
                points["residual"], **predictions["residual"]
            )
        }
        for condition in self.problem.conditions:
            target = condition.target(points[condition.name])
            deviations[condition.name] = predictions[condition.name] - target
        return {name: jnp.mean(x**2) for name, x in deviations.items()}

    def terms(
        self, params: Any, points: dict[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """The losses, and the predictions that they are of."""
        predictions = self.predict(params, points)
        return self.losses(predictions, points), predictions

    def loss(
        self, predictions: dict[str, Any], points: dict[str, jax.Array]
    ) -> jax.Array:
        """The weighted sum of the terms."""
        losses = self.losses(predictions, points)
        weighted = [weight * losses[name] for name, weight in self.weights().items()]
        return jnp.sum(jnp.stack(weighted))

    def weights(self) -> dict[str, float]:
        """The weight of each term's mean square in the loss; 1 if it is balanced."""
        is_weighted = self.config.terms == "weighted"
        weight = self.config.condition_weight if is_weighted else 1.0
        others = {condition.name: weight for condition in self.problem.conditions}
        return {"residual": 1.0} | others

    def combine(self, term_grads: Any) -> Any:
        """One gradient from those of the terms."""
        if self.config.terms == "balanced":
            return sg.balance_terms(term_grads)
        # In the order of the terms: a dict's leaves come by name.
        weights = jax.tree.leaves(self.weights())
        return jax.tree.map(
            lambda g: sum(w * g[k] for k, w in enumerate(weights)), term_grads
        )
