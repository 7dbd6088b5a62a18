"""The terms of the best constant field, with which a benchmark compares its runs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loss_terms import constant
from examples.pinn.config import Config
from examples.pinn.objective import Objective
from examples.pinn.problems import PROBLEMS
from examples.pinn.problems.lotka_volterra import TIME
from examples.pinn.problems.problem import Condition, given

pytestmark = pytest.mark.usefixtures("quick_compilation")


def of_best_constant(problem):
    config = Config(Path(), problem=problem, depth=1, width=2, condition_points=4096)
    return constant.of_best_constant(Objective(config))


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
    found = constant.of_best_constant(objective)
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
    assert constant.of_best_constant(objective)["residual"] == pytest.approx(200**2)
