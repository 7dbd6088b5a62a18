"""Whether a run has settled at a simple wrong solution.

A network that is stuck is close to a function that satisfies the equation and ignores a
condition, or the reverse: a constant, a plane, a function of time alone. Its loss looks
small, and where the solution is not known nothing else tells. What gives it away is a
term that is hardly smaller than the best constant field makes it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.config import Config
from examples.pinn.objective import Objective
from examples.pinn.problems.problem import names_taken

UNSATISFIED = 0.1
"""From this share of what it is for the best constant field a term is not satisfied."""
MET = 1e-3
"""A smaller share of what it is one unit away, and the best constant meets a term."""
POINTS = 1024
"""Points inside that the best constant field is found at."""


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


def notice(
    config: Config, shares: Mapping[str, Any], stopped_at: np.ndarray
) -> str | None:
    """What is wrong and what to try, in a paragraph; None if all terms are satisfied.

    Args:
      config: that of the run.
      shares: those of each term, shape (rates, seeds).
      stopped_at: of that shape; columns that have stopped, which are said elsewhere,
        have a step that is not negative.
    """
    found = []
    for term, values in shares.items():
        values = np.array(values, float)  # null in JSON is NaN here
        far = (values >= UNSATISFIED) & (stopped_at < 0)
        for rate, of_seeds, share in zip(config.lr, far, values, strict=True):
            if of_seeds.any():
                seeds = ", ".join(map(str, np.flatnonzero(of_seeds)))
                least = share[of_seeds].min()
                found.append(
                    f"{term!r} is at {least:.0%} or more (learning rate {rate:g}, "
                    f"seed {seeds})"
                )
    if not found:
        return None
    cures = ["other rates with --lr", "more --steps"]
    for option, best in {"terms": "balanced", "initialization": "critical"}.items():
        if getattr(config, option) != best:
            cures.append(f"--{option} {best}")
    return (
        "Not solved: some terms are hardly smaller than the best constant field makes "
        f"them. {'; '.join(found)}. The network has probably settled at a simple wrong "
        f"solution. Try {', '.join(cures)}. Measured values with much noise look like "
        "this too."
    )
