"""What is minimised: the network that a configuration names, and its loss."""

import copy
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

import stablegrad_optax as sg
from examples.common.runs import RunError
from examples.pinn import operators, units
from examples.pinn.config import Config
from examples.pinn.network import DeepNetwork
from examples.pinn.problems.problem import Condition, Problem, names_taken

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


class Objective:
    """The terms of a problem's loss: the residual, and each condition by its name.

    Points and predictions are dicts with one entry for each part, losses with one for
    each term, which are the same unless a problem splits its residuals.
    """

    def __init__(self, config: Config):
        self.config = config
        self.problem = problem = config.find_problem()
        self.scales = dict.fromkeys(problem.fields, (0.0, 1.0))
        self.units_of_unknowns = dict.fromkeys(problem.unknowns, 1.0)
        self.fields_without_scale: list[str] = []
        if config.units == "automatic":
            self.scales, self.fields_without_scale = units.of_fields(problem)
            self.units_of_unknowns = units.of_coefficients(problem)
        self.network = network_of(config, problem, self.scales)
        self.parts = problem.parts
        self.sweep = operators.Sweep.of(problem.operators, problem.fields)
        self.block = CPU_BLOCK if jax.default_backend() == "cpu" else None
        self.counts: Mapping[str, jax.Array] = {}
        points, solution = problem.reference()
        self._points = jnp.asarray(points, config.dtype)
        self._solution = jax.tree.map(lambda x: jnp.asarray(x, config.dtype), solution)

    def counting(self, counts: Mapping[str, jax.Array]) -> "Objective":
        """The same, but the square of a residual at a point counts as often as said.

        Shape (n,) for the n points of each part that is named.
        """
        other = copy.copy(self)
        other.counts = counts
        return other

    def initial_params(self, key: jax.Array) -> Any:
        """Those of the network, and the unknown coefficients if there are any."""
        dtype = self.config.dtype
        params = self.network.init(key, jnp.zeros((1, self.problem.dimension), dtype))
        unknowns = {
            name: jnp.asarray(x / self.units_of_unknowns[name], dtype)
            for name, x in self.problem.unknowns.items()
        }
        return {**params, UNKNOWNS: unknowns} if unknowns else params

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
        keys = jax.random.split(key, len(self.parts))
        points = {}
        for part, key in zip(self.parts, keys, strict=True):
            is_inside = part.name == RESIDUAL
            number = interior if is_inside else self.config.condition_points
            points[part.name] = part.where(key, number, self.config.dtype)
        return points

    def predict(self, params: Any, points: Mapping[str, jax.Array]) -> dict[str, Any]:
        """The fields at the points of each part, and the derivatives it takes."""
        return {
            part.name: self.predict_part(params, part, points[part.name])
            for part in self.parts
        }

    def predict_part(
        self, params: Any, part: Condition, points: jax.Array
    ) -> dict[str, jax.Array]:
        """The fields at points of one part, and the derivatives it takes."""
        return self.predict_names(params, names_taken(part.residual), points)

    def predict_names(
        self, params: Any, names: Collection[str], points: jax.Array
    ) -> dict[str, jax.Array]:
        """The fields at points, and the derivatives that are named."""
        apply = functools.partial(
            self.network.apply, params, sweep=self.sweep.only(names)
        )
        return operators.in_blocks(apply, points, self.block)

    def equations(
        self,
        part: Condition,
        predictions: Mapping[str, jax.Array],
        points: jax.Array,
        unknowns: Mapping[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """What should be zero at the points of a part, by the names of the equations.

        Shape (n,) for n points, (n / 2,) for pairs, or () for a value of all points.
        """
        known = {**predictions, **unknowns}
        taken = {name: known[name] for name in names_taken(part.residual)}
        zero = part.residual(points, **taken)
        if part.name in self.counts:
            root = jnp.sqrt(self.counts[part.name])
            zero = jax.tree.map(lambda x: root * x, zero)
        return {
            f"{part.name} {keystr(path, simple=True)}".strip(): x
            for path, x in jax.tree.leaves_with_path(zero)
        }

    def residuals(
        self,
        part: Condition,
        predictions: Mapping[str, jax.Array],
        points: jax.Array,
        unknowns: Mapping[str, jax.Array],
    ) -> dict[str, list[jax.Array]]:
        """The equations of a part, by the term that each counts in."""
        found = self.equations(part, predictions, points, unknowns)
        if part.name == RESIDUAL and self.problem.split_residuals:
            return {name: [x] for name, x in found.items()}
        return {part.name: list(found.values())}

    def losses(
        self,
        predictions: Mapping[str, Any],
        points: Mapping[str, jax.Array],
        unknowns: Mapping[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """The mean square of each term, without weights."""
        losses: dict[str, Any] = {}
        for part in self.parts:
            of_part = predictions[part.name], points[part.name]
            residuals = self.residuals(part, *of_part, unknowns)
            for term, found in residuals.items():
                losses[term] = sum(jnp.mean(x**2) for x in found)
        return losses

    def unknowns(self, params: Any) -> dict[str, jax.Array]:
        """The unknown coefficients, from the parameters."""
        return {
            name: unit * params[UNKNOWNS][name]
            for name, unit in self.units_of_unknowns.items()
        }

    def terms(
        self, params: Any, points: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """The losses, and the predictions that they are of."""
        predictions = self.predict(params, points)
        return self.losses(predictions, points, self.unknowns(params)), predictions

    @functools.cached_property
    def weights(self) -> dict[str, float]:
        """What each term's mean square is multiplied by; its importance if balanced."""
        key = jax.random.key(0)
        params = jax.eval_shape(self.initial_params, key)
        points = jax.eval_shape(lambda key: self.sample(key, 1), key)
        terms, _ = jax.eval_shape(self.terms, params, points)
        is_weighted = self.config.terms == "weighted"
        factor = self.config.condition_weight if is_weighted else 1.0
        weights = {part.name: factor * part.weight for part in self.parts[1:]}
        return {name: weights.get(name, 1.0) for name in terms}

    def loss(self, params: Any, points: Mapping[str, jax.Array]) -> jax.Array:
        """The weighted sum of the terms."""
        return weighted_sum(self.terms(params, points)[0], self.weights)


def network_of(
    config: Config, problem: Problem, scales: Mapping[str, units.Scale]
) -> DeepNetwork:
    """The network that a configuration names; `scales` are those of the fields."""
    activation = getattr(
        jnp if config.activation == "sin" else jax.nn, config.activation
    )
    try:
        kernel_init = INITIALIZERS[config.initialization](activation)
    except ValueError as error:
        raise RunError(
            f"--initialization {config.initialization} does not go with --activation "
            f"{config.activation}: {error}"
        ) from None
    offsets, of_fields = zip(*(scales[name] for name in problem.fields), strict=True)
    return DeepNetwork(
        depth=config.depth,
        width=config.width,
        lower=tuple(problem.domain.lower),
        upper=tuple(problem.domain.upper),
        fields=problem.fields,
        offsets=offsets,
        units=of_fields,
        activation=activation,
        kernel_init=kernel_init,
    )


def weighted_sum(terms: Mapping[str, Any], weights: Mapping[str, Any]) -> Any:
    """One value or one gradient from those of the terms."""

    def add(*leaves):
        return sum(w * x for w, x in zip(weights.values(), leaves, strict=True))

    return jax.tree.map(add, *(terms[name] for name in weights))
