"""Gauss-Newton steps: the residuals are linearised and made zero by least squares.

With r the residuals at the points of a step, each times the root of its weight in the
loss |r|², J their Jacobian and φ the last step,

    step = μ φ - Jᵀ (J Jᵀ + λ κ)⁻¹ (r + μ J φ),   κ the mean of the diagonal of J Jᵀ.

The matrix has a row for each residual, of which there are fewer than parameters. The
points are drawn anew at each step; by the momentum μ, as in SPRING (Goldshlager,
Abrahamsen, Lin 2024, arXiv 2401.10190), a step keeps what earlier points asked for.
Without it this is energy natural gradient descent (Müller, Zeinhofer 2023, arXiv
2302.13163) by Woodbury's identity (Guzmán-Cordero et al. 2025, arXiv 2505.12149). The
damping λ is Marquardt's: it depends on how well the linear residuals foretell the loss.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from examples.common.runs import RunError
from examples.pinn.objective import UNKNOWNS, Objective, weighted_sum
from examples.pinn.problems.problem import Condition

MOMENTUM = 0.95
FIRST_DAMPING = 1e-3
LEAST_DAMPING = {"float32": 1e-5, "float64": 1e-6}
"""With less a step fits the residuals of its points and not those between them."""


class State(NamedTuple):
    """What is kept between two steps."""

    damping: jax.Array
    last: jax.Array
    """The step before, of all parameters in one vector."""


def check(objective: Objective) -> None:
    """Raises RunError if a residual at one point depends on the fields at others.

    Its Jacobian would have wrong rows, whose steps are poor or refused.
    """
    params = jax.eval_shape(objective.initial_params, jax.random.key(0))
    points = jax.eval_shape(lambda key: objective.sample(key, 8), jax.random.key(0))
    predictions = jax.eval_shape(objective.predict, params, points)
    unknowns = {name: jnp.asarray(x) for name, x in objective.problem.unknowns.items()}
    leaves, structure = jax.tree.flatten((points, predictions))

    @jax.jit
    def found(key):
        """For each term: do its values change at other points than the first?"""
        # Almost any values show what depends on what.
        values = [
            jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
            for i, x in enumerate(leaves)
        ]
        points, predictions = jax.tree.unflatten(structure, values)
        is_coupled = {}
        for part in objective.parts:
            of_part, at = predictions[part.name], points[part.name]
            first = jax.tree.map(lambda x: jnp.zeros_like(x).at[0].set(1), of_part)
            _, changes = jax.jvp(
                lambda x, part=part, at=at: objective.residuals(part, x, at, unknowns),
                (of_part,),
                (first,),
            )
            for term, xs in changes.items():
                others = jnp.concatenate([jnp.atleast_1d(x)[1:] for x in xs])
                is_coupled[term] = jnp.any(jnp.isfinite(others) & (others != 0))
        return is_coupled

    of_terms = found(jax.random.key(0))
    if coupled := [term for term, is_coupled in of_terms.items() if is_coupled]:
        raise RunError(
            f"'{coupled[0]}' at one point depends on the fields at other points, which "
            "Gauss-Newton cannot take. Return one value of all points, such as a mean, "
            "or train without it: --gauss-newton-steps 0."
        )


def init(params: Any) -> State:
    flat, _ = ravel_pytree(params)
    return State(jnp.asarray(FIRST_DAMPING, flat.dtype), jnp.zeros_like(flat))


def update(
    objective: Objective,
    params: Any,
    state: State,
    points: Mapping[str, jax.Array],
    size: jax.Array,
    key: jax.Array,
) -> tuple[Any, State, jax.Array, Any]:
    """One step, times `size`; none where it would make the loss at its points larger.

    Args:
      key: of a choice among many measured values.

    Returns:
      New params and state, and the loss and its gradient before the step.
    """
    flat, unravel = ravel_pytree(params)
    of_terms = linearized(objective, params, points, key)
    weights = weights_of(objective, of_terms)
    roots = {term: jnp.sqrt(x) for term, x in weights.items()}
    residuals, jacobian = (
        jnp.concatenate([roots[term] * x[i] for term, x in of_terms.items()])
        for i in range(2)
    )
    kernel = jacobian @ jacobian.T
    damping = state.damping * jnp.trace(kernel) / len(kernel)
    damped = kernel + damping * jnp.eye(len(kernel), dtype=kernel.dtype)
    carried = MOMENTUM * state.last
    target = residuals + jacobian @ carried
    solution = jax.scipy.linalg.solve(damped, target, assume_a="pos")
    step = size * (carried - jacobian.T @ solution)

    loss, new_loss = (
        weighted_sum(objective.terms(unravel(x), points)[0], weights)
        for x in (flat, flat + step)
    )
    gain = loss - new_loss
    linear = jnp.sum(residuals**2) - jnp.sum((residuals + jacobian @ step) ** 2)
    is_better, share = gain > 0, gain / linear
    factor = jnp.select([~is_better, share < 0.25, share > 0.75], [4, 2, 1 / 3], 1)
    least = LEAST_DAMPING[flat.dtype.name]
    state = State(
        jnp.clip(state.damping * factor, least, 1).astype(flat.dtype),
        jnp.where(is_better, step, 0),
    )
    gradient = unravel(2 * jacobian.T @ residuals)
    return unravel(flat + state.last), state, loss, gradient


def weights_of(
    objective: Objective, of_terms: Mapping[str, tuple[jax.Array, jax.Array]]
) -> dict[str, jax.Array]:
    """Of the terms in the loss: fixed ones, or such that their rows are equally long.

    The latter depend on the network and the points, and not on what is left of a term.
    The weights of balanced terms would grow without bound where a term is satisfied.
    """
    weights = objective.weights
    if objective.config.terms == "weighted":
        return {term: jnp.asarray(weights[term]) for term in of_terms}
    squares = {term: jnp.sum(rows**2) for term, (_, rows) in of_terms.items()}
    return {
        term: jnp.where(x == 0, 0, weights[term] / jnp.where(x == 0, 1, x))
        for term, x in squares.items()
    }


def linearized(
    objective: Objective,
    params: Any,
    points: Mapping[str, jax.Array],
    key: jax.Array,
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The residuals of each term, whose squares add up to its loss, and their Jacobian.

    Shapes (rows,) and (rows, parameters).
    """
    found: dict[str, list[tuple[jax.Array, jax.Array]]] = {}
    for part in objective.parts:
        of_part = _of_part(objective, part, params, points[part.name], key)
        for term, values, rows in of_part:
            root = math.sqrt(1 / len(values))
            found.setdefault(term, []).append((root * values, root * rows))
    return {
        term: (jnp.concatenate([x for x, _ in xs]), jnp.concatenate([x for _, x in xs]))
        for term, xs in found.items()
    }


def _of_part(
    objective: Objective,
    part: Condition,
    params: Any,
    points: jax.Array,
    key: jax.Array,
):
    """For each residual of a part: its term, values (m,), and Jacobian (m, parameters).

    A residual has a value for each of n points, for each pair, or one for all of them.
    Value i depends on the predictions at the points i, i + m, i + 2 m, ..., so its row
    is the sum of the gradients at these points; `check` refuses other residuals. Where
    more values are measured than there are points inside, some are drawn.
    """
    most = objective.config.interior_points
    trained = {UNKNOWNS: params[UNKNOWNS]} if UNKNOWNS in params else {}

    def residuals(predictions, trained):
        unknowns = objective.unknowns(trained)
        found = objective.residuals(part, predictions, points, unknowns)
        return jax.tree.map(jnp.atleast_1d, found)

    def gradient_at(point, slopes):
        """Of one point's predictions, times what the residual makes of them."""

        def weighted(params):
            at = objective.predict_part(params, part, point[None])
            return sum(a * at[name][0] for name, a in slopes.items())

        return jax.grad(weighted)(params)

    predictions = objective.predict_part(params, part, points)
    values, pull_back = jax.vjp(lambda x: residuals(x, trained), predictions)
    of_trained = jax.tree.map(lambda x: {}, values)
    if trained:
        of_trained = jax.jacfwd(lambda x: residuals(predictions, x))(trained)
    for term, of_term in values.items():
        for i, value in enumerate(of_term):
            only = jax.tree.map(jnp.zeros_like, values)
            only[term][i] = jnp.ones_like(value)
            (slopes,) = pull_back(only)
            m, at = len(value), points
            of_coefficients = of_trained[term][i]
            if m == len(points) > most:
                few = jax.random.choice(key, m, (most,), replace=False)
                at, value, slopes, of_coefficients = jax.tree.map(
                    lambda x, few=few: x[few], (at, value, slopes, of_coefficients)
                )
                m = most
            gradients = jax.tree.map(
                lambda x, m=m: x.reshape(-1, m, *x.shape[1:]).sum(axis=0),
                jax.vmap(gradient_at)(at, slopes),
            )
            gradients |= of_coefficients
            yield term, value, jax.vmap(lambda tree: ravel_pytree(tree)[0])(gradients)
