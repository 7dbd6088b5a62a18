"""Whether a run has solved its problem, as far as its terms tell.

A network that is stuck is close to a function that satisfies one part of a problem and
ignores another: a constant, a plane, a function of time alone. Its loss looks small,
and where the solution is not known nothing else tells. Two signs give it away: a
condition that is hardly smaller than the best constant field makes it, and an equation
whose residual is as large as what it is made of.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.config import Config
from examples.pinn.objective import RESIDUAL, Objective
from examples.pinn.problems.problem import names_taken

UNSATISFIED = 0.1
"""From this share of what it is compared with a mean square is too large."""
MET = 1e-3
"""What is a smaller share of its usual size counts as zero."""
NEGLIGIBLE = 1e-9
"""A smaller share of the largest part is rounding error."""
POINTS = 1024
"""Points inside that the best constant field is found at."""


def is_equation(name: str) -> bool:
    """Whether this is the name of an equation, and not of a condition."""
    return name.split()[0] == RESIDUAL


@np.errstate(invalid="ignore", divide="ignore")  # of a column that has stopped
def shares(
    constant: Mapping[str, float],
    losses: Mapping[str, np.ndarray],
    at_start: Mapping[str, np.ndarray],
    parts: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The mean square of each condition and equation, over what it is compared with.

    Args:
      constant: the terms of the best constant field.
      losses: the terms.
      at_start: `squares_of_parts` of the initial weights. What should be zero is zero
        up to an error, so an equation is compared with a share of these at least. An
        equation that had a single part, such as Δu = 0, is not compared: its residual
        is that part.
      parts: `squares_of_parts`.
    """
    found = {
        name: x / constant[name] for name, x in losses.items() if not is_equation(name)
    }
    for name, squares in parts.items():
        # Some are not finite where a residual divides by what is left out.
        of_start, now = (
            np.where(np.isfinite(x), x, 0)[..., 1:] for x in (at_start[name], squares)
        )
        usual = of_start.max(axis=-1)
        number = np.sum(of_start > NEGLIGIBLE * usual[..., None], axis=-1)
        size = np.maximum(now.max(axis=-1), MET * usual)
        found[name] = np.where(number > 1, squares[..., 0] / size, 0.0)
    return found


def of_best_constant(objective: Objective) -> dict[str, float]:
    """The mean square of each term for the best constant field.

    That field meets the conditions best, in the sum of their mean squares. Infinite for
    a term that says nothing, as this constant satisfies it too: an equation without a
    source, an initial value of zero.
    """
    problem, dtype = objective.problem, objective.config.dtype
    unknowns = {name: jnp.asarray(x, dtype) for name, x in problem.unknowns.items()}
    conditions = [condition.name for condition in problem.conditions]

    @jax.jit
    def found(key):
        points = objective.sample(key, POINTS)

        def losses(constants):
            """Those of constant fields, whose derivatives are zero."""
            values = dict.fromkeys(problem.operators, jnp.zeros((), dtype))
            values |= dict(zip(problem.fields, constants, strict=True))
            predictions = {
                part.name: {
                    name: jnp.full(len(points[part.name]), values[name])
                    for name in names_taken(part.residual)
                    if name in values
                }
                for part in objective.parts
            }
            return objective.losses(predictions, points, unknowns)

        def of_conditions(constants):
            of_terms = losses(constants)
            return sum(of_terms[name] for name in conditions)

        # One step of Newton's: conditions are linear in the fields as a rule. No
        # condition may prescribe a field, such as a pressure.
        zero = jnp.zeros(len(problem.fields), dtype)
        hessian, slope = jax.hessian(of_conditions)(zero), jax.grad(of_conditions)(zero)
        best = -jnp.linalg.pinv(hessian, hermitian=True) @ slope
        units = jnp.asarray([objective.scales[name][1] for name in problem.fields])
        return losses(best), losses(best + units)

    best, away = jax.device_get(found(jax.random.key(3000)))
    return {
        name: float(x) if x > MET * away[name] else np.inf for name, x in best.items()
    }


def squares_of_parts(
    objective: Objective, params: Any, points: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The mean square of each equation's residual, and then those of its parts.

    A part is what the residual loses without one of the quantities that it takes, and
    the last is the residual without any: for u_t + u u_x - f they are u_t, twice u u_x
    and -f. Shape (quantities + 2,).
    """
    inside = objective.parts[0]
    predictions = objective.predict_part(params, inside, points[RESIDUAL])

    def residuals(kept):
        """Where each quantity is multiplied by what `kept` has for it."""
        quantities = {
            name: factor * x
            for factor, (name, x) in zip(kept, predictions.items(), strict=True)
        }
        unknowns = objective.unknowns(params)
        return objective.equations(inside, quantities, points[RESIDUAL], unknowns)

    number = len(predictions)
    ones = jnp.ones(number, objective.config.dtype)
    whole, source = residuals(ones), residuals(0 * ones)
    without = jax.vmap(residuals)(1 - jnp.eye(number, dtype=ones.dtype))

    def squares(whole, source, without):
        rows = jnp.stack([whole, *(whole - x for x in without), source])
        return jnp.mean(rows.reshape(len(rows), -1) ** 2, axis=1)

    return {name: squares(x, source[name], without[name]) for name, x in whole.items()}


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
        whole = "that of the best constant field"
        if is_equation(name):
            whole = "its largest part"
        for rate, of_seeds, share in zip(config.lr, far, values, strict=True):
            if of_seeds.any():
                seeds = ", ".join(map(str, np.flatnonzero(of_seeds)))
                found.append(
                    f"{name!r} is {share[of_seeds].min():.0%} or more of {whole} "
                    f"(learning rate {rate:g}, seed {seeds})"
                )
        is_one_of_many = is_equation(name) and name != RESIDUAL
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
