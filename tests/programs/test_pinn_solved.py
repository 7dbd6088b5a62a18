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
from examples.pinn.problems.lotka_volterra import TIME
from examples.pinn.problems.problem import Condition, given


class Known(Objective):
    """Its fields and their derivatives at any points are those that are given."""

    def __init__(self, problem, **values):
        super().__init__(Config(Path(), depth=1, width=2))
        self.problem, self.parts, self.values = problem, problem.parts, values

    def predict_part(self, params, part, points):
        return {name: jnp.full(len(points), x) for name, x in self.values.items()}


def of_best_constant(problem):
    config = Config(Path(), problem=problem, depth=1, width=2, condition_points=4096)
    return solved.of_best_constant(Objective(config))


def test_two_conditions_that_no_constant_meets():
    """(c - sin πx)² and c² have their least mean for c = 1/π; 4,096 points each."""
    found = of_best_constant("laplace")
    assert found.pop("residual") == np.inf  # every constant satisfies it
    expected = {"top": 1 / 2 - 3 / np.pi**2, "others": 1 / np.pi**2}
    assert found == pytest.approx(expected, rel=0.05)


def test_conditions_that_a_constant_meets_say_nothing_and_a_source_does():
    found = of_best_constant("poisson")
    # The mean square of 2 π² sin(πx) sin(πy).
    assert found == {"residual": pytest.approx(np.pi**4, rel=0.1), "boundary": np.inf}


def test_a_condition_that_the_best_constant_nearly_meets_says_nothing():
    """One that weighs much, a cooled side, holds the constant near zero."""
    config = Config(Path(), problem="laplace", depth=1, width=2)
    objective = Objective(config)
    top, others = objective.problem.conditions
    cooled = Condition("cooled", others.where, lambda points, u: 15 * u)
    problem = dataclasses.replace(objective.problem, conditions=(top, others, cooled))
    objective.problem, objective.parts = problem, problem.parts
    found = solved.of_best_constant(objective)
    assert found["others"] == found["cooled"] == np.inf
    assert found["top"] == pytest.approx(0.5, rel=0.1)


def test_several_fields():
    # At 100 and 15: (200 - 60)² + (30 - 15.9)².
    expected = {"residual": pytest.approx(19798.81), "start": np.inf}
    assert of_best_constant("lotka-volterra") == expected


def test_a_field_that_nothing_prescribes():
    problem = dataclasses.replace(
        PROBLEMS["lotka-volterra"],
        conditions=(Condition("start", TIME.face(0, 0.0), given(r=100.0)),),
    )
    config = Config(Path(), problem="lotka-volterra", depth=1, width=2)
    objective = Objective(config)
    objective.problem, objective.parts = problem, problem.parts
    # At 100 and 0.
    assert solved.of_best_constant(objective)["residual"] == pytest.approx(200**2)


def squares(objective):
    params = objective.initial_params(jax.random.key(0))
    points = objective.sample(jax.random.key(1), 16)
    return solved.squares_of_parts(objective, params, points)


def test_the_parts_of_an_equation():
    problem = dataclasses.replace(
        PROBLEMS["burgers"], residual=lambda points, u, u_t, u_x: u_t + u * u_x - 7.0
    )
    found = squares(Known(problem, u=2.0, u_t=5.0, u_x=-3.0))
    # u_t + u u_x - f, and u u_x, u_t, u u_x, -f.
    expected = np.square([5.0 - 6.0 - 7.0, -6.0, 5.0, -6.0, -7.0])
    chex.assert_trees_all_close(found, {"residual": expected})


def share(at_start, parts):
    """Of one equation; the squares of its parts."""
    parts, at_start = (
        {"residual": np.array([parts])},
        {"residual": np.array([at_start])},
    )
    (found,) = solved.shares({}, {}, at_start, parts).values()
    return found.tolist()


def test_an_equation_is_compared_with_its_largest_part():
    usual = [1.0, 2.0, 3.0, 0.0]
    assert share(usual, [0.5, 1.0, 4.0, 0.0]) == [0.5 / 4.0]
    # Where all parts should be zero: with a share of its usual size.
    assert share(usual, [2e-9, 1e-9, 2e-9, 0.0]) == [2e-9 / (3.0 * solved.MET)]
    # Without a divisor a residual is not finite.
    assert share([1.0, 2.0, np.inf, 1.0], [0.5, 2.0, np.inf, np.nan]) == [0.5 / 2.0]
    # Nothing is said of a single part, nor of what is not known.
    assert share([3.0, 3.0, 0.0, 1e-12], [0.5, 0.5, 0.0, 0.0]) == [0.0]
    assert np.isnan(share(usual, [np.nan] * 4)).all()


def test_a_large_equation_does_not_hide_a_small_one():
    def residual(points, u, v, u_t, v_x):
        return {"large": u - v, "small": u_t + v_x}

    problem = dataclasses.replace(
        PROBLEMS["burgers"], residual=residual, conditions=(), fields=("u", "v")
    )
    values = {"u": 1000.0, "v": 1001.0, "u_t": 0.3, "v_x": -0.1}
    parts = jax.device_get(squares(Known(problem, **values)))
    found = solved.shares({}, {"residual": 1.04}, parts, parts)
    expected = {"residual large": 1001.0**-2, "residual small": (0.2 / 0.3) ** 2}
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


@pytest.mark.parametrize("face", [0, 1])
def test_a_condition_on_the_wrong_face_makes_a_constant_a_solution(face):
    """sin(πx) is given along time, at x = 0 where it is zero."""
    heat = PROBLEMS["heat"]
    start = Condition(
        "start",
        heat.domain.face(face, 0.0),
        given(u=lambda points: jnp.sin(jnp.pi * points[:, 0])),
    )
    sides = Condition("sides", heat.domain.faces((0, 0.0), (0, 1.0)))
    objective = Objective(Config(Path(), problem="heat", depth=1, width=2))
    problem = dataclasses.replace(heat, conditions=(start, sides))
    objective.problem, objective.parts = problem, problem.parts
    found = [*solved.of_best_constant(objective).values()]
    assert np.isinf(found).all() == (face == 0)


def test_the_notice_names_terms_rates_and_seeds():
    values = {"top": np.array([[0.97, 0.5, 1e-3], [0.01, 0.2, 2.0]])}
    stopped_at = np.array([[-1, -1, -1], [-1, -1, 7]])
    config = Config(Path(), lr=(3e-3, 1e-2), terms="weighted")
    notice = solved.notice(config, values, stopped_at)
    of_constant = "of that of the best constant field"
    assert f"is 50% or more {of_constant} (learning rate 0.003, seed 0, 1)" in notice
    assert f"is 20% or more {of_constant} (learning rate 0.01, seed 1)" in notice
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
