"""The points of a step: what is drawn by the residual."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pinn import sampling
from examples.pinn.config import Config
from examples.pinn.objective import Objective

MEAN = """
import dataclasses
from examples.pinn.problems.poisson import PROBLEM_1D as POISSON

def residuals(points, u, u_xx):
    return {"equation": u_xx, "mean": u.mean()}

PROBLEM = dataclasses.replace(POISSON, residual=residuals, split_residuals=True)
"""

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def drawn():
    """Parameters, uniform points, and many drawn by the residual; of Poisson 1-D."""
    small = {"depth": 2, "width": 4, "interior_points": 50, "condition_points": 4}
    objective = Objective(Config(Path("unused"), problem="poisson1d", **small))
    params = jax.jit(objective.initial_params)(jax.random.key(0))
    uniform = sampling.drawn(objective, jnp.int32(0), 7)

    def by_residual(key):
        counting, points = sampling.drawn_by_residual(objective, params, uniform, key)
        return counting.counts["residual"], points

    keys = jax.random.split(jax.random.key(0), 20)
    counts, points = jax.jit(jax.vmap(by_residual))(keys)
    return objective, params, uniform, counts, points


def squares(objective, params, points):
    """Of the residual at points inside, shape (..., n, 1)."""
    inside = objective.parts[0]

    def of_points(points):
        at = objective.predict_part(params, inside, points)
        (found,) = jax.tree.leaves(objective.residuals(inside, at, points, {}))
        return found**2

    flat = jax.jit(of_points)(points.reshape(-1, 1))
    return np.reshape(flat, points.shape[:-1])


def test_half_of_the_points_are_where_the_residual_is_large(drawn):
    """The mean of r² at points of a density r² + mean(r²) is known."""
    objective, params, uniform, _, points = drawn
    dense = objective.parts[0].where(jax.random.key(3), 5000, jnp.float32)
    r2 = squares(objective, params, dense)
    density = r2 / r2.mean() + 1
    expected = np.sum(density * r2) / np.sum(density)
    assert expected > 1.2 * r2.mean()
    found = squares(objective, params, points["residual"]).mean()
    np.testing.assert_allclose(found, expected, rtol=0.1)
    for inside, boundary in zip(points["residual"], points["boundary"], strict=True):
        assert np.all(objective.problem.domain.contains(inside))
        assert len(np.unique(inside, axis=0)) == 50
        chex.assert_trees_all_equal(boundary, uniform["boundary"])


def test_the_loss_is_that_of_uniform_points(drawn):
    objective, params, _, counts, points = drawn

    @jax.jit
    @jax.vmap
    def losses(counts, points):
        return objective.counting({"residual": counts}).terms(params, points)[0]

    found = losses(counts, points)
    r2 = squares(objective, params, points["residual"])
    expected = np.mean(counts * r2, axis=1)
    np.testing.assert_allclose(found["residual"], expected, rtol=1e-5)
    dense = objective.parts[0].where(jax.random.key(3), 5000, jnp.float32)
    expected = squares(objective, params, dense).mean()
    np.testing.assert_allclose(np.mean(found["residual"]), expected, rtol=0.1)
    # Other parts count as before.
    alone = jax.jit(objective.terms)(params, jax.tree.map(lambda x: x[0], points))[0]
    np.testing.assert_allclose(found["boundary"], alone["boundary"], rtol=1e-5)


def test_points_of_a_mean_are_uniform(tmp_path):
    """A mean over points that are drawn by the residual would be another mean."""
    path = tmp_path / "mean.py"
    path.write_text(MEAN)
    objective = Objective(Config(Path("unused"), problem=str(path), depth=1, width=4))
    params = jax.jit(objective.initial_params)(jax.random.key(0))
    uniform = sampling.drawn(objective, jnp.int32(0), 7)
    _, points = sampling.drawn_by_residual(
        objective, params, uniform, jax.random.key(1)
    )
    chex.assert_trees_all_equal(points, uniform)


def test_points_of_a_step_are_drawn_anew_unless_they_are_fixed(drawn):
    objective, _, uniform, *_ = drawn
    chex.assert_trees_all_equal(uniform, sampling.drawn(objective, jnp.int32(0), 7))
    other = sampling.drawn(objective, jnp.int32(0), 8)
    assert not np.any(other["residual"] == uniform["residual"])
