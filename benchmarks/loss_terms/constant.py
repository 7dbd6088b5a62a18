"""The terms of the best constant field, which a lost run is hardly better than."""

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.objective import Objective
from examples.pinn.problems.problem import names_taken

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
