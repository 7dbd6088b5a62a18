"""What is minimised: the network that a configuration names, and its loss."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import stablegrad_optax as sg
from examples.common.runs import RunError
from examples.pinn import operators
from examples.pinn.config import Config
from examples.pinn.domains import Sampler
from examples.pinn.network import DeepNetwork
from examples.pinn.problems.problem import Problem, Residual, names_taken

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

UNKNOWNS = "unknowns"
"""The key of unknown coefficients beside the network's own parameters."""
RESIDUAL = "residual"
"""The name of the equation among the parts."""

# More points at once are no faster on a CPU and take memory: about 140 MB for each
# column of 64 layers of 32.
CPU_BLOCK = 4096


def network_of(config: Config) -> DeepNetwork:
    """The network that a configuration names."""
    problem, activation = config.find_problem(), ACTIVATIONS[config.activation]
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
        lower=tuple(problem.domain.lower),
        upper=tuple(problem.domain.upper),
        fields=problem.fields,
        activation=activation,
        kernel_init=kernel_init,
    )


def initial_params(config: Config, key: jax.Array) -> Any:
    """Those of the network, and the unknown coefficients if there are any."""
    problem = config.find_problem()
    points = jnp.zeros((1, problem.dimension), config.dtype)
    params = network_of(config).init(key, points)
    if not problem.unknowns:
        return params
    unknowns = {
        name: jnp.asarray(x, config.dtype) for name, x in problem.unknowns.items()
    }
    return {**params, UNKNOWNS: unknowns}


@dataclasses.dataclass(frozen=True)
class Part:
    """What is to be zero at some points: the equation, or a condition."""

    name: str
    sample: Sampler
    residual: Residual
    sweep: operators.Sweep
    """The derivatives that the residual takes."""
    weight: float

    @property
    def takes(self) -> tuple[str, ...]:
        return names_taken(self.residual)


def parts_of(problem: Problem) -> list[Part]:
    """The equation, then each condition."""
    sweep = operators.Sweep.of(problem.operators, problem.fields)

    def part(name: str, sample: Sampler, residual: Residual, weight: float) -> Part:
        own = sweep.only(names_taken(residual))
        return Part(name, sample, residual, own, weight)

    inside = part(RESIDUAL, problem.domain.sample, problem.residual, 1.0)
    conditions = [
        part(c.name, c.where, c.residual, c.weight) for c in problem.conditions
    ]
    return [inside, *conditions]


class Objective:
    """The terms of a problem's loss: the residual, and each condition by its name.

    Points and predictions are dicts with one entry for each part, losses with one for
    each term, which are the same unless a problem splits its residuals.
    """

    def __init__(self, config: Config):
        self.config = config
        self.problem = config.find_problem()
        self.network = network_of(config)
        self.parts = parts_of(self.problem)
        self.block = CPU_BLOCK if jax.default_backend() == "cpu" else None
        points, solution = self.problem.reference()
        self._points = jnp.asarray(points, config.dtype)
        self._solution = {
            name: jnp.asarray(x, config.dtype) for name, x in solution.items()
        }

    def errors(self, params: Any) -> dict[str, jax.Array]:
        """The relative L2 error of each field whose solution is known."""
        fields: Any = self.network.apply(params, self._points)
        norm = jnp.linalg.norm
        return {
            name: norm(fields[name] - exact) / norm(exact)
            for name, exact in self._solution.items()
        }

    def sample(self, key: jax.Array, interior: int) -> dict[str, jax.Array]:
        """Points inside, and on each condition's part of the boundary."""
        config = self.config
        keys = jax.random.split(key, len(self.parts))
        numbers = [interior] + [config.condition_points] * (len(self.parts) - 1)
        return {
            part.name: part.sample(key, number, config.dtype)
            for part, key, number in zip(self.parts, keys, numbers, strict=True)
        }

    def predict(self, params: Any, points: Mapping[str, jax.Array]) -> dict[str, Any]:
        """The fields at the points of each part, and the derivatives it takes."""
        return {
            part.name: self.quantities(params, part, points[part.name])
            for part in self.parts
        }

    def quantities(self, params: Any, part: Part, points: jax.Array) -> Any:
        """The fields at some points, and the derivatives that a part takes, by name."""
        apply = functools.partial(self.network.apply, params, sweep=part.sweep)
        return operators.in_blocks(apply, points, self.block)

    def losses(
        self,
        predictions: Mapping[str, Any],
        points: Mapping[str, jax.Array],
        unknowns: Mapping[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """The mean square of each term, without weights."""
        losses: dict[str, Any] = {}
        for part in self.parts:
            known = {**predictions[part.name], **unknowns}
            taken = {name: known[name] for name in part.takes}
            zero = part.residual(points[part.name], **taken)
            if not isinstance(zero, Mapping):
                zero = {"": zero}
            squares = {name: jnp.mean(x**2) for name, x in zero.items()}
            if part.name == RESIDUAL and self.problem.split_residuals:
                losses |= {f"{RESIDUAL} {name}": x for name, x in squares.items()}
            else:
                losses[part.name] = sum(squares.values())
        return losses

    def terms(
        self, params: Any, points: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """The losses, and the predictions that they are of."""
        predictions = self.predict(params, points)
        return self.losses(predictions, points, unknowns_of(params)), predictions

    @functools.cached_property
    def term_names(self) -> tuple[str, ...]:
        """Those of `losses`."""

        def losses():
            key = jax.random.key(0)
            return self.terms(initial_params(self.config, key), self.sample(key, 1))[0]

        return tuple(jax.eval_shape(losses))

    def loss(
        self,
        predictions: Mapping[str, Any],
        points: Mapping[str, jax.Array],
        unknowns: Mapping[str, jax.Array],
    ) -> jax.Array:
        """The weighted sum of the terms."""
        losses = self.losses(predictions, points, unknowns)
        weights = self.weights(losses)
        return jnp.sum(jnp.stack([weights[name] * x for name, x in losses.items()]))

    def weighted(self, params: Any, points: Mapping[str, jax.Array]) -> jax.Array:
        """The loss of parameters."""
        predictions = self.predict(params, points)
        return self.loss(predictions, points, unknowns_of(params))

    def weights(self, names: Iterable[str]) -> dict[str, float]:
        """What each term's mean square is multiplied by; its importance if balanced."""
        factor = (
            self.config.condition_weight if self.config.terms == "weighted" else 1.0
        )
        weights = {part.name: factor * part.weight for part in self.parts[1:]}
        return {name: weights.get(name, 1.0) for name in names}

    def combine(self, grads: Mapping[str, Any], losses: Mapping[str, Any]) -> Any:
        """The gradient of the loss from those of the terms."""
        return weighted_sum(grads, self.weights(losses))


def weighted_sum(grads: Mapping[str, Any], weights: Mapping[str, Any]) -> Any:
    """One gradient from those of the terms."""

    def add(*leaves):
        return sum(w * x for w, x in zip(weights.values(), leaves, strict=True))

    return jax.tree.map(add, *(grads[name] for name in weights))


def unknowns_of(params: Any) -> dict[str, jax.Array]:
    """The unknown coefficients among the parameters."""
    return params.get(UNKNOWNS, {})
