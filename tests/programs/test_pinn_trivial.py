"""Shares: a term over that of the best constant field, and what is said of them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pinn import trivial
from examples.pinn.config import Config
from examples.pinn.objective import Objective
from examples.pinn.problems import PROBLEMS


def shares(problem, losses, points):
    objective = Objective(Config(Path(), problem=problem, depth=1, width=2))
    points = {name: jnp.asarray(x, jnp.float32) for name, x in points.items()}
    losses = {name: jnp.float32(x) for name, x in losses.items()}
    unknowns = PROBLEMS[problem].unknowns
    found = jax.jit(trivial.shares, static_argnums=0)(
        objective, losses, points, unknowns
    )
    return {name: float(x) for name, x in found.items()}


def test_shares_of_laplace_s_equation():
    """(c - sin πx)² and c² have their least mean for c = 1/π."""
    x = (np.arange(1000) + 0.5) / 1000
    line = np.stack([x, np.ones(1000)], axis=-1)
    points = {"residual": line, "top": line, "others": line}
    top, others = 1 / 2 - 3 / np.pi**2, 1 / np.pi**2
    losses = {"residual": 1.0, "top": top, "others": others / 2}
    found = shares("laplace", losses, points)
    # Every constant satisfies the equation.
    assert found.pop("residual") == 0
    np.testing.assert_allclose([found["top"], found["others"]], [1, 0.5], rtol=1e-4)


def test_conditions_that_a_constant_meets_say_nothing_and_a_source_does():
    points = {"residual": [[0.5, 0.5]], "boundary": [[1.0, 0.3]]}
    found = shares("poisson", {"residual": np.pi**4, "boundary": 1.0}, points)
    # The source is 2 π² sin(πx) sin(πy).
    assert found == {"residual": pytest.approx(0.25), "boundary": 0}


def test_several_fields_and_one_that_nothing_prescribes():
    points = {"residual": [[5.0]], "start": [[0.0]]}
    found = shares("lotka-volterra", {"residual": 1.0, "start": 1.0}, points)
    # At 1 and 0.15: (2 - 0.6)² + (0.3 - 0.159)².
    assert found == {"residual": pytest.approx(1 / 1.979881), "start": 0}
    corner = {name: [[0.0, 0.0]] for name in ("residual", "boundary")}
    assert (
        shares("kovasznay", {"residual": 1.0, "boundary": 1.0}, corner)["residual"] == 0
    )


def test_the_notice_names_terms_rates_and_seeds():
    values = {"top": np.array([[0.97, 0.5, 1e-3], [0.01, 0.2, 2.0]])}
    stopped_at = np.array([[-1, -1, -1], [-1, -1, 7]])
    notice = trivial.notice((3e-3, 1e-2), values, stopped_at)
    assert "'top' is at 50% or more (learning rate 0.003, seed 0, 1)" in notice
    assert "'top' is at 20% or more (learning rate 0.01, seed 1)" in notice
    assert "\n" not in notice
    satisfied = {"top": np.full((2, 3), 0.05)}
    assert trivial.notice((3e-3, 1e-2), satisfied, stopped_at) is None
