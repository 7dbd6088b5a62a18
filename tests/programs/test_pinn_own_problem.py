"""A file of the user's own: trained, kept with the run, its mistakes named."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import strict

from examples.common.runs import Run
from examples.pinn import __main__ as program
from examples.pinn import figures
from examples.pinn.config import Config
from examples.pinn.domains import Box
from examples.pinn.objective import Objective
from examples.pinn.operators import d, dd
from examples.pinn.problems import own
from examples.pinn.problems.problem import (
    Condition,
    Problem,
    measured,
    read_values,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Two fields, a mixed derivative, every kind of condition, an unknown, no solution.
FILE = """
from pathlib import Path
import jax.numpy as jnp
from examples.pinn.domains import Box
from examples.pinn.operators import d, dd
from examples.pinn.problems.problem import (
    Condition, Problem, given, measured, periodic, read_values
)

DOMAIN = Box((0.0, 0.0), (1.0, 2.0))
HERE = Path(__file__).parent

def residual(points, u, v, u_t, v_xt, speed):
    return {"first": u_t - speed * v, "second": v_xt - u}

PROBLEM = Problem(
    name="mine",
    equation="u_t = c v, v_xt = u",
    fields=("u", "v"),
    coordinates=("x", "t"),
    domain=DOMAIN,
    operators={
        "u_x": d(1, 0)("u"), "u_t": d(0, 1)("u"), "v_xt": (d(1, 0) @ d(0, 1))("v"),
    },
    residual=residual,
    conditions=(
        Condition("initial", DOMAIN.face(1, 0.0), given(u=lambda p: p[:, 0], u_t=0.0)),
        Condition("robin", DOMAIN.face(0, 1.0), lambda points, u, u_x: u + 2 * u_x),
        periodic("periodic", DOMAIN, 0, "v"),
        measured("values", read_values(HERE / "data.npz")),
    ),
    unknowns={"speed": 0.5},
    exact_unknowns={"speed": 1.0},
    resolution=(5, 6),
    split_residuals=True,
)
"""
DATA = 'read_values(HERE / "data.npz")'
TINY = [
    "--optimizer",
    "adam",
    "--depth",
    "1",
    "--width",
    "4",
    "--interior-points",
    "8",
    "--seeds",
    "2",
]
TINY += ["--condition-points", "4", "--steps", "4", "--gauss-newton-steps", "0"]


def main(*arguments):
    return program.main([str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    rng = np.random.default_rng(0)
    points = rng.uniform((0, 0), (1, 2), (9, 2))
    np.savez(tmp_path / "data.npz", points=points, v=np.sin(points[:, 0]))
    return tmp_path


def test_from_training_to_figures(folder, capsys):
    mine, run, points = folder / "mine.py", folder / "run", folder / "points.csv"
    train = ["train", "--problem", mine, *TINY, "--out", run]
    assert main(*train) == 0
    entry = list(Run(run).history())[-1]
    terms = {"residual first", "residual second"}
    terms |= {"initial", "robin", "periodic", "values"}
    assert set(entry["losses"]) == set(entry["term_weights"]) == terms
    (estimates,) = entry["unknowns"]["speed"]
    assert all(0 < abs(estimate - 0.5) < 0.1 for estimate in estimates)
    assert "speed" not in str(entry["layer_scales"])
    assert strict(run / "metrics.json")["errors"] == {}

    # The run needs the file no longer.
    mine.rename(folder / "moved.py")
    points.write_text("0.5,1.0\n0.25,0.0\n0.5,9.0\n")
    evaluate = ["evaluate", "--run", run, "--points", points]
    assert main(*evaluate, "--out", folder / "fields.npz") == 0
    found = read_values(folder / "fields.npz")
    assert found["u"].shape == found["v"].shape == (3,)
    assert "1 of 3 points are outside the domain" in capsys.readouterr().out
    assert main("plot", "--run", run) == 0
    for name in ("field.png", "unknowns.png"):
        assert (run / name).stat().st_size > 5000
    assert main("compare", run, "--out", folder / "figure.png") == 0
    assert "loss at the best learning rate" in capsys.readouterr().out

    # But it goes on with the same file and the same data only.
    mine.write_text(FILE)
    assert main(*train, "--resume") == 0
    mine.write_text(FILE + "\n# another\n")
    assert main(*train, "--resume") == 2
    mine.write_text(FILE)
    values = read_values(folder / "data.npz")
    np.savez(folder / "data.npz", **values | {"v": values["v"] + 1e-9})
    own.load.cache_clear()  # as in another process
    assert main(*train, "--resume") == 2
    err = capsys.readouterr().err
    assert err.count("--resume needs the settings of the run: problem_sha256") == 2
    assert err.count("\n") == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("PROBLEM = ", "OTHER = ", "must define PROBLEM"),
        ("HERE = Path", "HERE = Pth", r"mine.py:11: NameError: name 'Pth'"),
        ('"data.npz"', '"gone.npz"', r"mine.py:\d+: FileNotFoundError: .*gone.npz"),
        ("resolution=(5, 6)", "resolution=(5,)", "2 coordinates, and .* for 1, 2"),
        ('d(1, 0)("u")', 'd(1)("u")', "2 coordinates, and .* operators are for 1, 2"),
        ('"u_x": d(1, 0)("u")', '"u_x": d(1, 0)', "u_x must be a derivative of one of"),
        ('"u_x": d', '"u": d', "u names two things"),
        ("robin", "initial", "initial names two things"),
        ("u, v, u_t,", "u, w, u_t,", "residual takes w, which is none of"),
        ("u + 2 * u_x", "(u + 2 * u_x)[:, None]", r"robin must have a value for each"),
        ("p[:, 0], u_t", "p[:, :1], u_t", r"initial must have a value for each point"),
        ("    resolution", "    exact=lambda p: p, resolution", "exact must have"),
        ("v_xt - u", "v_xt - u / [1]", r"mine.py:14: TypeError"),
        ("v_xt - u", "v_xt - u(points)", "arrays of values .* and not functions"),
        ("v_xt - u", "u if u[0] > 0 else v", "14: if, while, .* use jnp.where"),
        ("v_xt - u", "np.sin(u)", "NameError"),
        ("v_xt - u", "float(u[0]) * v", "14: NumPy, math .* use jax.numpy"),
        ("    resolution", "    scales={'w': (0, 1)}, resolution", "scales .* for w"),
        ("lambda points, u,", "lambda u,", "is the points; that of robin is u"),
        (DATA, "{'points': [[0, 1], [0, 2]], 'u': [1, jnp.nan]}", "u .* nan in row 1"),
        ('"u_t": d(0, 1)', '"u_t": d(0, 0)', "take a direction, which is not zero"),
        ("v_xt - u", "[x for x, t in [points]]", "a column .* points.T"),
        (DATA, "{'points': [[0, 1], [0, 2]], 'u': [[1], [2]]}", r"of shape \(n,\)"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_no_folder(folder, capsys, old, new, message):
    assert old in FILE
    path = folder / "mine.py"
    path.write_text(FILE.replace(old, new, 1))
    assert main("train", "--problem", path, *TINY, "--out", folder / "run") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not (folder / "run").exists()


DISC = """
import jax.numpy as jnp
from examples.pinn.domains import Ball
from examples.pinn.operators import laplacian
from examples.pinn.problems.problem import Condition, Problem

DISC = Ball((1.0, 0.0), 2.0)

PROBLEM = Problem(
    name="disc",
    equation="Δu = 4 on a disc",
    coordinates=("x", "y"),
    domain=DISC,
    operators={"laplacian": laplacian(2)},
    residual=lambda points, laplacian: laplacian - 4,
    conditions=(Condition("boundary", DISC.boundary()),),
    exact=lambda p: (p[:, 0] - 1) ** 2 + p[:, 1] ** 2 - 4,
    resolution=(9, 9),
)
"""


def test_figure_of_a_field_is_empty_outside_of_its_domain(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(DISC)
    arguments = ["--problem", tmp_path / "mine.py", *TINY, "--out", tmp_path / "run"]
    assert main("train", *arguments) == 0
    drawn = []
    monkeypatch.setattr(figures.plt, "close", drawn.append)
    assert main("plot", "--run", tmp_path / "run") == 0
    panels = [ax for ax in drawn[-2].axes if ax.get_title()]
    titles = [ax.get_title() for ax in panels]
    assert titles == ["network", "solution", "network - solution"]
    inside = np.isfinite(panels[0].collections[0].get_array().filled(np.nan))
    assert inside.any() > inside.all()
    assert panels[0].get_aspect() == 1  # two coordinates of space
    monkeypatch.undo()
    for figure in drawn:
        figures.plt.close(figure)


def test_a_term_that_is_never_finite(tmp_path, capsys):
    """No learning rate would help."""
    (tmp_path / "mine.py").write_text(DISC.replace("laplacian - 4", "laplacian / 0"))
    arguments = ["--problem", tmp_path / "mine.py", *TINY, "--out", tmp_path / "run"]
    assert main("train", *arguments, "--seeds", 1, "--optimizer", "sgd") == 1
    err = capsys.readouterr().err
    assert re.search(
        r"initial weights, the terms of the loss are .*residual (nan|None|inf)", err
    )
    assert "lower" not in err


def test_values_from_a_table_with_a_header(tmp_path):
    table = tmp_path / "data.csv"
    table.write_text("t,u,x\n0.5,1.0,2.0\n0.25,3.0,4.0\n")
    found = read_values(table, "x", "t")
    assert set(found) == {"points", "u"}
    np.testing.assert_array_equal(found["points"], [[2.0, 0.5], [4.0, 0.25]])
    np.testing.assert_array_equal(found["u"], [1.0, 3.0])
    table.write_text("x,u\n0.5,1.0\n0.25,n.a.\n")
    with pytest.raises(ValueError, match=r"n\.a\.. at position 1"):
        read_values(table, "x")
    table.write_text("t,u,x\n0.5,1.0,2.0\n")
    for coordinates in ((), ("x", "y")):
        with pytest.raises(ValueError, match=r"needs a header .* of .*'t', 'u', 'x'"):
            read_values(table, *coordinates)


def test_what_may_be_a_mistake_is_said():
    line = Box((0.0,), (1.0,))
    data = {"points": np.array([[0.5], [2.0]]), "u_x": np.ones(2)}
    problem = Problem(
        name="insulated",
        equation="u_xx = 0",
        coordinates=("x",),
        domain=line,
        operators={"u_x": d(1), "u_xx": dd(1)},
        residual=lambda points, u_xx: u_xx,
        conditions=(measured("slopes", data),),
        resolution=(11,),
    )
    free, outside = problem.doubts()
    assert "Only derivatives of u are taken" in free
    assert outside == "1 of 2 points of slopes are outside the domain."
    level = Condition("level", line.sample, lambda points, u: jnp.mean(u))
    inside = measured("slopes", {name: x[:1] for name, x in data.items()})
    assert not dataclasses.replace(problem, conditions=(level, inside)).doubts()


def test_an_integral_and_a_solution_that_is_known_in_a_part():
    def mass(points, u):
        return jnp.mean(u) - 2.0

    def exact(points):
        return np.where(points[:, 0] > 0.5, points[:, 0], np.nan)

    line = Box((0.0,), (1.0,))
    problem = Problem(
        name="mass",
        equation="u = x in a half, ∫ u dx = 2",
        coordinates=("x",),
        domain=line,
        operators={"u_x": d(1)},
        residual=lambda points, u_x: u_x - 1,
        conditions=(Condition("mass", line.sample, mass),),
        exact=exact,
        resolution=(11,),
    )
    problem.check()
    points, solution = problem.reference()
    np.testing.assert_allclose(points[:, 0], solution["u"])
    assert len(points) == 5  # 0.6 to 1.0
    objective = Objective(Config(Path(), depth=1, width=2))
    objective.problem, objective.parts = problem, problem.parts
    points = objective.sample(jax.random.key(0), 8)
    ones = {part.name: jnp.ones(len(points[part.name])) for part in problem.parts}
    predictions = {"residual": {"u_x": ones["residual"]}, "mass": {"u": ones["mass"]}}
    assert objective.losses(predictions, points, {}) == {"residual": 0, "mass": 1}
