"""Whether a run has settled at a simple wrong solution.

A network that is stuck is close to a function that satisfies the equation and ignores a
condition, or the reverse: a constant, a plane, a function of time alone. Its loss looks
small, and where the solution is not known nothing else tells. What gives it away is a
term that is hardly smaller than the best constant field makes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.objective import Objective
from examples.pinn.problems.problem import names_taken

UNSATISFIED = 0.1
"""From this share on, a term is called not satisfied."""


def shares(
    objective: Objective,
    losses: Mapping[str, jax.Array],
    points: Mapping[str, jax.Array],
    unknowns: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """The mean square of each term over that of the best constant field.

    That field meets the conditions best, in the sum of their mean squares. A term that
    every constant satisfies, as an equation without a source, says nothing: 0.
    """
    problem = objective.problem
    conditions = [condition.name for condition in problem.conditions]

    def of_constants(constants):
        """The mean squares of fields that are constant; their derivatives are zero."""
        values = dict.fromkeys(problem.operators, jnp.zeros((), constants.dtype))
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
        found = of_constants(constants)
        return sum(found[name] for name in conditions)

    # One step of Newton's: conditions are linear in the fields as a rule. No condition
    # may prescribe a field, such as a pressure.
    zero = jnp.zeros(len(problem.fields), next(iter(losses.values())).dtype)
    hessian, slope = jax.hessian(of_conditions)(zero), jax.grad(of_conditions)(zero)
    best = of_constants(-jnp.linalg.pinv(hessian, hermitian=True) @ slope)
    # Where the constant is right, only rounding errors are left of what it removes.
    at_zero = of_constants(zero)
    return {
        name: jnp.where(best[name] > 1e-6 * at_zero[name], loss / best[name], 0.0)
        for name, loss in losses.items()
    }


def notice(
    rates: Sequence[float], shares: Mapping[str, Any], stopped_at: np.ndarray
) -> str | None:
    """What is wrong and what to try, in a paragraph; None if all terms are satisfied.

    Args:
      rates: the learning rates of the run.
      shares: those of each term, shape (rates, seeds).
      stopped_at: of that shape; columns that have stopped, which are said elsewhere,
        have a step that is not negative.
    """
    found = []
    for term, values in shares.items():
        values = np.array(values, float)  # null in JSON is NaN here
        far = (values >= UNSATISFIED) & (stopped_at < 0)
        for rate, of_seeds, share in zip(rates, far, values, strict=True):
            if of_seeds.any():
                seeds = ", ".join(map(str, np.flatnonzero(of_seeds)))
                least = share[of_seeds].min()
                found.append(
                    f"{term!r} is at {least:.0%} or more (learning rate {rate:g}, "
                    f"seed {seeds})"
                )
    if not found:
        return None
    return (
        "Not solved: some terms are hardly smaller than the best constant field makes "
        f"them. {'; '.join(found)}. The network has probably settled at a simple wrong "
        "solution. Try other rates with --lr, more --steps, --terms balanced, and "
        "--initialization critical. Measured values with much noise look like this too."
    )
