"""Gauss-Newton steps: the Jacobian, the step's formula, what a step may do."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from examples.pinn import gauss_newton
from examples.pinn.config import Config
from examples.pinn.objective import Objective, initial_params

SMALL = {"depth": 2, "width": 4, "interior_points": 6, "condition_points": 4}

INTEGRAL = """
import dataclasses
from examples.pinn.problems.kovasznay import PROBLEM as FLOW
from examples.pinn.problems.problem import Condition

def mean(points, p):
    return p.mean() - 0.5

PRESSURE = Condition("pressure", FLOW.domain.sample, mean)
PROBLEM = dataclasses.replace(
    FLOW, conditions=(*FLOW.conditions, PRESSURE), split_residuals=True
)
"""


def objective_of(problem, tmp_path, **options):
    if problem == "integral":
        problem = str(tmp_path / "integral.py")
        Path(problem).write_text(INTEGRAL)
    return Objective(Config(Path("unused"), problem=problem, **SMALL | options))


def start(objective):
    """Parameters, points and weights; every other one of the biases is not zero."""
    params = initial_params(objective.config, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1, params)
    points = objective.sample(jax.random.key(1), objective.config.interior_points)
    losses, _ = objective.terms(params, points)
    weights = {name: jnp.asarray(1.0 + i) for i, name in enumerate(losses)}
    return params, points, weights


@pytest.mark.parametrize(
    "problem", ["poisson", "advection", "burgers-inverse", "lotka-volterra", "integral"]
)
def test_the_rows_are_gradients_of_the_residuals(problem, tmp_path):
    """Points, pairs, a mean over all points, measured values, unknown coefficients."""
    objective = objective_of(problem, tmp_path)
    params, points, weights = start(objective)

    def loss(params):
        losses, _ = objective.terms(params, points)
        return sum(weights[name] * x for name, x in losses.items())

    def all_residuals(flat):
        params = unravel(flat)
        predictions = objective.predict(params, points)
        unknowns = objective.unknowns(params)
        found = []
        for part in objective.parts:
            at = predictions[part.name], points[part.name]
            of_part = objective.residuals(part, *at, unknowns)
            for term, arrays in sorted(of_part.items()):
                scaled = [jnp.sqrt(weights[term] / x.size) * x.ravel() for x in arrays]
                found += scaled
        return jnp.concatenate(found)

    flat, unravel = ravel_pytree(params)
    of_point = objective, params, points, weights
    values, rows = jax.jit(lambda: gauss_newton.linearized(*of_point))()
    np.testing.assert_allclose(jnp.sum(values**2), loss(params), rtol=1e-5)
    expected = jax.jit(jax.jacfwd(all_residuals))(flat)
    assert rows.shape == (len(values), len(flat))
    size = np.abs(expected).max()
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-5 * size)
