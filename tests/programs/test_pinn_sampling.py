"""The points of a step: what is drawn by the residual."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pinn import sampling
from examples.pinn.config import Config
from examples.pinn.objective import Objective, initial_params

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def drawn():
    """Parameters, uniform points, and some drawn by the residual; of Poisson 1-D."""
    small = {"depth": 2, "width": 4, "interior_points": 50, "condition_points": 4}
    objective = Objective(Config(Path("unused"), problem="poisson1d", **small))
    params = initial_params(objective.config, jax.random.key(0))
    uniform = sampling.drawn(objective, jnp.int32(0), 7)
    by_residual = jax.jit(functools.partial(sampling.drawn_by_residual, objective))
    chosen = [by_residual(params, uniform, jax.random.key(i)) for i in range(20)]
    return objective, params, uniform, chosen


def test_most_points_are_where_the_residual_is_large(drawn):
    """The mean of r² at points of a density r² + 0.1 mean(r²) is known."""
    objective, params, uniform, chosen = drawn

    def squares(points):
        return np.asarray(residual(points)) ** 2

    @jax.jit
    def residual(points):
        inside = objective.parts[0]
        at = objective.predict_part(params, inside, points)
        (found,) = jax.tree.leaves(objective.residuals(inside, at, points, {}))
        return found

    dense = objective.parts[0].where(jax.random.key(3), 5000, jnp.float32)
    r2 = squares(dense)
    density = r2 / r2.mean() + sampling.UNIFORM
    expected = np.sum(density * r2) / np.sum(density)
    found = np.mean([squares(points["residual"]).mean() for points in chosen])
    assert expected > 1.2 * r2.mean()
    np.testing.assert_allclose(found, expected, rtol=0.1)
    for points in chosen:
        assert np.all(objective.problem.domain.contains(points["residual"]))
        assert len(np.unique(points["residual"], axis=0)) == 50
        chex.assert_trees_all_equal(points["boundary"], uniform["boundary"])


def test_points_of_a_step_are_drawn_anew_unless_they_are_fixed(drawn):
    objective, _, uniform, _ = drawn
    chex.assert_trees_all_equal(uniform, sampling.drawn(objective, jnp.int32(0), 7))
    other = sampling.drawn(objective, jnp.int32(0), 8)
    assert not np.any(other["residual"] == uniform["residual"])
