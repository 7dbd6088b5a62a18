"""What tells that a run has not solved its problem, and what is said of it."""

import dataclasses
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pinn import solved
from examples.pinn.config import Config
from examples.pinn.objective import Objective
from examples.pinn.problems import PROBLEMS
from examples.pinn.problems.problem import Condition, given, periodic

pytestmark = pytest.mark.usefixtures("quick_compilation")

HEAT = PROBLEMS["heat"]


def squares(problem, **values):
    """Where fields and operators have known values, or are functions of points."""
    objective = Objective(Config(Path(), depth=1, width=2, condition_points=4000))
    objective.problem, objective.parts = problem, problem.parts
    points = objective.sample(jax.random.key(1), 4096)

    def known(points):
        return {
            name: jnp.broadcast_to(x(points) if callable(x) else x, len(points))
            for name, x in values.items()
        }

    predictions = {name: known(x) for name, x in points.items()}
    return jax.device_get(solved.squares(objective, {}, predictions, points))


def test_an_equation_and_its_parts():
    problem = dataclasses.replace(
        HEAT, residual=lambda points, u, u_t, u_x: u_t + u * u_x - 7.0, conditions=()
    )
    # u_t + u u_x - f, and u u_x, u_t, u u_x, -f.
    expected = np.square([5.0 - 6.0 - 7.0, -6.0, 5.0, -6.0, -7.0])
    found = squares(problem, u=2.0, u_t=5.0, u_x=-3.0)
    chex.assert_trees_all_close(found, {"residual": expected})


def test_a_condition_and_the_same_inside():
    """Of u = t: zero at the start, and t² inside; pairs differ as any two points do."""
    start, sides = HEAT.domain.face(1, 0.0), HEAT.domain.face(0, 1.0)
    problem = dataclasses.replace(
        HEAT,
        residual=lambda points, u_t: u_t - 1,
        conditions=(
            Condition("start", start, given(u=0.0)),
            Condition("side", sides, given(u=0.0)),
            periodic("pairs", HEAT.domain, 0),
        ),
    )
    found = squares(problem, u=lambda points: points[:, 1], u_t=1.0)
    assert found["start"][0] == found["pairs"][0] == 0
    for name, size in {"start": 1 / 3, "side": 1 / 3, "pairs": 1 / 6}.items():
        np.testing.assert_allclose(found[name][1], size, rtol=0.1)
    # A boundary that is ignored is as large as the inside.
    np.testing.assert_allclose(found["side"][0], 1 / 3, rtol=0.1)


def test_a_condition_on_a_mean_has_parts():
    mean = Condition("level", HEAT.domain.sample, lambda points, u: jnp.mean(u) - 4.0)
    problem = dataclasses.replace(HEAT, conditions=(mean,))
    found = squares(problem, u=3.0, u_t=0.0, u_xx=0.0)
    np.testing.assert_allclose(found["level"], [1.0, 9.0, 16.0], rtol=1e-5)


def share(at_start, now):
    """Of one condition or equation."""
    found = solved.shares({"a": np.array([at_start])}, {"a": np.array([now])})
    return found["a"].tolist()


def test_the_share_is_that_of_the_largest_part():
    usual = [1.0, 2.0, 3.0, 0.0]
    assert share(usual, [0.5, 1.0, 4.0, 0.0]) == [0.5 / 4.0]
    # Where all parts should be zero: of a share of their usual size.
    assert share(usual, [2e-9, 1e-9, 2e-9, 0.0]) == [2e-9 / (3.0 * solved.LEAST)]
    # Without a divisor a residual is not finite.
    assert share([1.0, 2.0, np.inf, 1.0], [0.5, 2.0, np.inf, np.nan]) == [0.5 / 2.0]
    # Nothing is said of a single part, nor of what is not known.
    assert share([3.0, 3.0, 0.0, 1e-14], [0.5, 0.5, 0.0, 0.0]) == [0.0]
    assert np.isnan(share(usual, [np.nan] * 4)).all()
    # A condition has no more than one size.
    assert share([1.0, 2.0], [0.5, 2.0]) == [0.5 / 2.0]


def test_a_large_equation_does_not_hide_a_small_one():
    def residual(points, u, v, u_t, v_x):
        return {"large": u - v, "small": u_t + v_x}

    problem = dataclasses.replace(HEAT, residual=residual, conditions=())
    now = squares(problem, u=1000.0, v=1001.0, u_t=0.3, v_x=-0.1)
    found = solved.shares(now, now)
    expected = {"residual large": 1001.0**-2, "residual small": (0.2 / 0.3) ** 2}
    chex.assert_trees_all_close(found, expected, rtol=1e-3)


@pytest.mark.parametrize("face", [0, 1])
def test_a_condition_on_the_wrong_face_makes_zero_a_solution(face):
    """sin(πx) is given along time, at x = 0 where it is zero."""
    start = Condition(
        "start",
        HEAT.domain.face(face, 0.0),
        given(u=lambda points: jnp.sin(jnp.pi * points[:, 0])),
    )
    sides = Condition("sides", HEAT.domain.faces((0, 0.0), (0, 1.0)))
    objective = Objective(Config(Path(), problem="heat", depth=1, width=2))
    problem = dataclasses.replace(HEAT, conditions=(start, sides))
    objective.problem, objective.parts = problem, problem.parts
    assert solved.is_solved_by_zero(objective) == (face == 0)


def test_the_notice_names_terms_rates_and_seeds():
    values = {"top": np.array([[0.97, 0.5, 1e-3], [0.01, 0.2, 2.0]])}
    stopped_at = np.array([[-1, -1, -1], [-1, -1, 7]])
    config = Config(Path(), lr=(3e-3, 1e-2), terms="weighted")
    notice = solved.notice(config, values, stopped_at)
    inside = "of what it is inside the domain"
    assert f"is 50% or more {inside} (learning rate 0.003, seed 0, 1)" in notice
    assert f"is 20% or more {inside} (learning rate 0.01, seed 1)" in notice
    # Advice that is followed already is not given.
    assert "more --steps, --terms balanced. Much" in notice
    assert "\n" not in notice
    satisfied = {"top": np.full((2, 3), 0.05)}
    assert solved.notice(config, satisfied, stopped_at) is None


def test_the_notice_of_an_equation_names_its_part_and_the_cure():
    values = {"residual momentum x": np.array([[0.4]])}
    problem = Config(Path(), problem="kovasznay")
    notice = solved.notice(problem, values, np.array([[-1]]))
    assert "'residual momentum x' is 40% or more of its largest part" in notice
    assert "split_residuals=True" in notice
