"""Units: a problem trains the same whatever its fields are counted in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from examples.common.runs import Run
from examples.pinn import units
from examples.pinn.config import Config
from examples.pinn.domains import Ball, Box, OverTime
from examples.pinn.operators import d
from examples.pinn.problems.problem import (
    Condition,
    Problem,
    flux,
    given,
    measured,
    periodic,
)
from examples.pinn.train import train

pytestmark = pytest.mark.usefixtures("quick_compilation")

FILE = """
import numpy as np
from examples.pinn.domains import Box
from examples.pinn.operators import d
from examples.pinn.problems.problem import Condition, Problem, given

UNIT = {unit}
TIME = Box((0.0,), (1.0,))

PROBLEM = Problem(
    name="decay",
    equation="u' = -k u, v' = u",
    coordinates=("t",),
    domain=TIME,
    fields=("u", "v"),
    operators={{"u_t": d(1)("u"), "v_t": d(1)("v")}},
    residual=lambda points, u, u_t, v_t, k: {{"u": u_t + k / UNIT * u, "v": v_t - u}},
    conditions=(
        Condition("start", TIME.face(0, 0.0), given(u=2 * UNIT, v=0.0)),
        Condition("end", TIME.face(0, 1.0), given(u=2 * np.exp(-1) * UNIT)),
    ),
    unknowns={{"k": 3.0 * UNIT}},
    exact=lambda p: {{
        "u": 2 * UNIT * np.exp(-p[:, 0]), "v": 2 * UNIT * (1 - np.exp(-p[:, 0]))
    }},
    scales={{"v": (0.0, UNIT)}},
    resolution=(11,),
)
"""


def run_in_units_of(unit, tmp_path):
    file = tmp_path / f"in_{unit}.py"
    file.write_text(FILE.format(unit=unit))
    small = {"depth": 1, "width": 8, "steps": 20, "seeds": 1, "interior_points": 8}
    small |= {"condition_points": 1, "optimizer": "adam", "lr": (1e-2,)}
    small["gauss_newton_steps"] = 0
    out = tmp_path / f"{unit}"
    train(Config(out, problem=str(file), **small), Console(quiet=True))
    return Run(out)


def test_a_problem_trains_the_same_in_other_units(tmp_path):
    one, other = (run_in_units_of(unit, tmp_path).metrics for unit in (1.0, 100.0))
    for name in ("relative_l2", "errors", "shares"):
        got, expected = map(np.hstack, (jax.tree.leaves(x[name]) for x in (other, one)))
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    k, k_of_other = one["unknowns"]["k"], other["unknowns"]["k"]
    np.testing.assert_allclose(np.divide(k_of_other, 100), k, rtol=1e-5)
    assert not np.allclose(k, 3.0, rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([], (0, 1)),
        ([0, 0], (0, 1)),
        ([0, 200], (0, 200)),
        ([-0.02, 0.01], (0, 0.02)),
        ([1, 1.65], (0, 1.6)),
        ([288.15, 298.15], (293.1, 5)),
        ([293, 293], (293, 290)),
        ([-3], (-3, 3)),
    ],
)
def test_scale_of_values(values, scale):
    assert units.of_values(np.array(values, float)) == scale


SQUARE = Box((0.0, 0.0), (1.0, 1.0))


def problem(*conditions, **options):
    return Problem(
        name="mine",
        equation="",
        coordinates=("x", "y"),
        domain=SQUARE,
        operators={"u_x": d(1, 0), "u_y": d(0, 1)},
        residual=lambda points, u_x: u_x,
        conditions=conditions,
        resolution=(3, 3),
        **options,
    )


@pytest.mark.parametrize(
    ("residual", "unit"),
    [
        (given(u=lambda p: 7 + 0 * p[:, 0], u_x=900.0), 7),
        (lambda points, u: u + 7.0, 7),
        (lambda points, u, k: {"a": u - 7 * k, "b": 900 * u}, 14),
        (lambda points, u, u_x: u_x - 900 * u, 1),
        (flux(SQUARE, ("u_x", "u_y"), 900.0), 1),
    ],
)
def test_prescribed_values_are_seen_however_they_are_written(residual, unit):
    condition = Condition("edge", SQUARE.boundary(), residual)
    found, _ = units.of_fields(problem(condition, unknowns={"k": 2.0}))
    assert found["u"][1] == unit
    assert abs(found["u"][0]) in (0, unit)


def test_measured_values_and_pairs():
    data = {"points": np.full((3, 2), 0.5), "u": np.array([-5.0, 40.0, 3.0])}
    pairs = periodic("pairs", SQUARE, 0)
    found = units.of_fields(problem(pairs, measured("values", data)))
    assert found == ({"u": (0.0, 40.0)}, [])
    assert "u = 40 × output" in units.describe(*found)
    # A difference of two values prescribes neither.
    found = units.of_fields(problem(pairs))
    assert found == ({"u": (0.0, 1.0)}, ["u"])
    assert "u = output, as nothing prescribes it" in units.describe(*found)
    assert units.describe({"u": (0.0, 1.0)}, []) is None
    given_by_user = problem(measured("values", data), scales={"u": (1.0, 2.0)})
    assert units.of_fields(given_by_user) == ({"u": (1.0, 2.0)}, [])


def test_flux_is_along_the_outward_normal():
    """Of u = 3x - y through a disc around the origin: 3x - y over the radius."""
    domain = OverTime(Ball((0.0, 0.0), 2.0), 0.0, 1.0)
    points = domain.boundary()(jax.random.key(0), 50, jnp.float32)
    through = flux(domain, ("u_x", "u_y"), lambda p: (3 * p[:, 0] - p[:, 1]) / 2)
    of_points = jnp.ones(len(points))
    found = through(points, u_x=3 * of_points, u_y=-of_points)
    np.testing.assert_allclose(found, 0, atol=1e-5)
