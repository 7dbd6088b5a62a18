"""Whether a run has solved its problem, as far as its terms tell.

A network that is stuck is close to a function that satisfies one part of a problem and
ignores another: a constant, a plane, a function of time alone. Its loss looks small,
and where the solution is not known nothing else tells. Two signs give it away: a
condition that holds at its points hardly better than it would inside the domain, and an
equation whose residual is as large as what it is made of.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.config import Config
from examples.pinn.objective import RESIDUAL, Objective
from examples.pinn.problems.problem import Condition, names_taken

UNSATISFIED = 0.1
"""A mean square is too large from this share of what it is compared with."""
LEAST = 0.01
"""The share of what it was with the initial weights that counts as zero."""
NEGLIGIBLE = 1e-12
"""A smaller share of a mean square is rounding error."""

Predictions = Mapping[str, Mapping[str, jax.Array]]


def predict(
    objective: Objective, params: Any, points: Mapping[str, jax.Array]
) -> dict[str, Any]:
    """What all parts take inside the domain, and what each takes at its points."""
    inside, *conditions = objective.parts
    names = [name for part in objective.parts for name in names_taken(part.residual)]
    found = {inside.name: objective.predict_names(params, names, points[inside.name])}
    for part in conditions:
        found[part.name] = objective.predict_part(params, part, points[part.name])
    return found


def squares(
    objective: Objective,
    params: Any,
    predictions: Predictions,
    points: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """The mean squares of each condition and equation, and of what it is compared with.

    A condition is compared with itself at random points inside. An equation is compared
    with its parts: what it loses without one of the quantities that it takes, and what
    is left of it without any. For u_t + u u_x - f they are u_t, twice u u_x, and -f.
    The same goes for a condition that is one value of all points, such as a mean.

    Args:
      predictions: those of `predict` at the `points`.

    Returns:
      Arrays of shape (2,) for conditions, and (quantities + 2,) for equations.
    """
    unknowns = objective.unknowns(params)
    found: dict[str, jax.Array] = {}
    for part in objective.parts:
        at, of_part = points[part.name], predictions[part.name]
        values = objective.equations(part, of_part, at, unknowns)
        if part.name == RESIDUAL or any(x.ndim == 0 for x in values.values()):
            found |= _by_parts(objective, part, of_part, at, unknowns)
            continue
        number = len(points[RESIDUAL])
        rows = jax.random.randint(jax.random.key(0), (len(at),), 0, number)
        inside = {name: x[rows] for name, x in predictions[RESIDUAL].items()}
        elsewhere = objective.equations(part, inside, points[RESIDUAL][rows], unknowns)
        found[part.name] = jnp.stack(
            [sum(jnp.mean(x**2) for x in y.values()) for y in (values, elsewhere)]
        )
    return found


def _by_parts(
    objective: Objective,
    part: Condition,
    predictions: Mapping[str, jax.Array],
    points: jax.Array,
    unknowns: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """The mean square of each equation, and those of its parts."""
    names = [name for name in names_taken(part.residual) if name in predictions]

    def residuals(kept):
        """Where each quantity is multiplied by what `kept` has for it."""
        quantities = {
            name: factor * predictions[name]
            for factor, name in zip(kept, names, strict=True)
        }
        return objective.equations(part, quantities, points, unknowns)

    ones = jnp.ones(len(names), objective.config.dtype)
    whole, source = residuals(ones), residuals(0 * ones)
    without = jax.vmap(residuals)(1 - jnp.eye(len(names), dtype=ones.dtype))

    def squares(whole, source, without):
        rows = jnp.stack([whole, *(whole - x for x in without), source])
        return jnp.mean(rows.reshape(len(rows), -1) ** 2, axis=1)

    return {name: squares(x, source[name], without[name]) for name, x in whole.items()}


@np.errstate(invalid="ignore", divide="ignore")  # of a column that has stopped
def shares(
    at_start: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The first of `squares`, over the largest of the others.

    Parts that should be zero are zero up to an error only. So what is divided by is not
    less than a hundredth of its value at the start. The share is zero for an equation
    of a single part, such as Δu = 0: its residual is that part.
    """
    found = {}
    for name in now:
        # Some are not finite where a residual divides by what is left out.
        usual, size = (
            np.where(np.isfinite(x), x, 0)[..., 1:] for x in (at_start[name], now[name])
        )
        largest = usual.max(axis=-1)
        share = now[name][..., 0] / np.maximum(size.max(axis=-1), LEAST * largest)
        parts = np.sum(usual > NEGLIGIBLE * largest[..., None], axis=-1)
        is_compared = (parts > 1) | (usual.shape[-1] == 1)
        found[name] = np.where(is_compared, share, 0.0)
    return found


def is_solved_by_zero(objective: Objective) -> bool:
    """Whether fields that are zero satisfy the equation and every condition."""
    problem, dtype = objective.problem, objective.config.dtype
    unknowns = {name: jnp.asarray(x, dtype) for name, x in problem.unknowns.items()}

    @jax.jit
    def found(key):
        points = objective.sample(key, 256)
        zeros = {
            part.name: dict.fromkeys(
                names_taken(part.residual), jnp.zeros(len(points[part.name]), dtype)
            )
            for part in objective.parts
        }
        return objective.losses(zeros, points, unknowns)

    losses = jax.device_get(found(jax.random.key(0)))
    unit = min(unit for _, unit in objective.scales.values())
    return all(x < NEGLIGIBLE * unit**2 for x in losses.values())


def notice(
    config: Config, shares: Mapping[str, Any], stopped_at: np.ndarray
) -> str | None:
    """What is wrong and what to try, in a paragraph; None if all is satisfied.

    Args:
      config: that of the run.
      shares: of each condition and equation, shape (rates, seeds).
      stopped_at: of that shape; columns that have stopped, which are said elsewhere,
        have a step that is not negative.
    """
    found, problem = [], config.find_problem()
    cures = ["other rates with --lr", "more --steps"]
    for name, values in shares.items():
        values = np.array(values, float)  # null in JSON is NaN here
        far = (values >= UNSATISFIED) & (stopped_at < 0)
        is_equation = name.split()[0] == RESIDUAL
        whole = "its largest part" if is_equation else "what it is inside the domain"
        for rate, of_seeds, share in zip(config.lr, far, values, strict=True):
            if of_seeds.any():
                seeds = ", ".join(map(str, np.flatnonzero(of_seeds)))
                found.append(
                    f"{name!r} is {share[of_seeds].min():.0%} or more of {whole} "
                    f"(learning rate {rate:g}, seed {seeds})"
                )
        is_one_of_many = is_equation and name != RESIDUAL
        if far.any() and is_one_of_many and not problem.split_residuals:
            cures.append("a term for each equation by split_residuals=True")
    if not found:
        return None
    for option, best in {"terms": "balanced", "initialization": "critical"}.items():
        if getattr(config, option) != best:
            cures.append(f"--{option} {best}")
    return (
        f"Not solved: the mean square of {'; '.join(found)}. "
        "The network has probably settled at a simple wrong solution. "
        f"Try {', '.join(dict.fromkeys(cures))}. "
        "Much noise in measured values looks like this too, and so do conditions that "
        "contradict each other at a corner."
    )
