"""The points that a step of training looks at."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from examples.pinn.objective import RESIDUAL, Objective

CANDIDATES = 30
"""Points that are looked at for each one that is taken."""
UNIFORM = 0.1
"""What a point counts even where the equation holds; 1 is the mean."""


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
) -> dict[str, jax.Array]:
    """The same `points`, but inside the domain most are where the residual r is large.

    They are drawn from thirty times as many uniform ones, each with a probability
    proportional to r² / mean(r²) + 0.1, as in residual-based adaptive distribution (Wu
    et al. 2023, arXiv 2207.10289). A front that is thinner than the distance between
    uniform points would else be seen by few of them, or none.
    """
    of_candidates, of_choice = jax.random.split(key)
    inside, dtype = objective.parts[0], objective.config.dtype
    number = len(points[RESIDUAL])
    candidates = inside.where(of_candidates, CANDIDATES * number, dtype)
    predictions = objective.predict_part(params, inside, candidates)
    unknowns = objective.unknowns(params)
    terms = objective.residuals(inside, predictions, candidates, unknowns)
    density = jnp.full(len(candidates), UNIFORM, dtype)
    for residual in jax.tree.leaves(terms):
        if residual.shape == density.shape:  # not of a mean over all points
            squares = residual**2
            mean = jnp.mean(squares)
            density += squares / jnp.where(mean == 0, 1, mean)
    probabilities = density / jnp.sum(density)
    chosen = jax.random.choice(
        of_choice, candidates, (number,), replace=False, p=probabilities
    )
    return {**points, RESIDUAL: chosen}
