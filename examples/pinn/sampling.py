"""The points that a step of training looks at."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from examples.pinn.objective import RESIDUAL, Objective

CANDIDATES = 30
"""Points that are looked at for each one that is taken."""


def drawn(
    objective: Objective, seed: jax.Array, step: jax.Array | int
) -> dict[str, jax.Array]:
    """The points of a step of the run, uniform in each part of the domain."""
    config, key = objective.config, jax.random.key(1000 + seed)
    key = jax.random.fold_in(key, 0 if config.points == "fixed" else step)
    return objective.sample(key, config.interior_points)


def drawn_by_residual(
    objective: Objective,
    params: Any,
    points: Mapping[str, jax.Array],
    key: jax.Array,
) -> tuple[Objective, dict[str, jax.Array]]:
    """The same `points`, but inside the domain half are where the residual r is large.

    They are drawn from thirty times as many uniform ones, each with a probability
    proportional to p = (1 + r² / mean(r²)) / 2, as in residual-based adaptive
    distribution (Wu et al. 2023, arXiv 2207.10289). A front that is thinner than the
    distance between uniform points would else be seen by few of them, or none.

    Where a residual has no value for each point, such as a mean, all stay uniform.

    Returns:
      The objective, in which the square at a point counts 1 / p times, so that the loss
      is still that of uniform points; and the points.
    """
    of_candidates, of_choice = jax.random.split(key)
    inside, dtype = objective.parts[0], objective.config.dtype
    number = len(points[RESIDUAL])
    candidates = inside.where(of_candidates, CANDIDATES * number, dtype)
    predictions = objective.predict_part(params, inside, candidates)
    unknowns = objective.unknowns(params)
    terms = objective.residuals(inside, predictions, candidates, unknowns)
    squares = [residual**2 for residual in jax.tree.leaves(terms)]
    if any(x.shape != (len(candidates),) for x in squares):
        return objective, dict(points)
    means = [jnp.mean(x) for x in squares]
    of_all = [
        x / jnp.where(mean == 0, 1, mean)
        for x, mean in zip(squares, means, strict=True)
    ]
    density = 1 + sum(of_all) / len(of_all)
    density /= jnp.mean(density)
    chosen = jax.random.choice(
        of_choice, len(candidates), (number,), replace=False, p=density / len(density)
    )
    counting = objective.counting({RESIDUAL: 1 / density[chosen]})
    return counting, {**points, RESIDUAL: candidates[chosen]}
