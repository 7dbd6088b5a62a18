"""A file of the user's own: trained, kept with the run, its mistakes named."""

import dataclasses
import json
import re

import numpy as np
import pytest
from program import strict

from examples.common.runs import Run
from examples.pinn import __main__ as program
from examples.pinn import figures
from examples.pinn.problems import PROBLEMS, measured, own, read_values

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Two fields, a mixed derivative, every kind of condition, an unknown, no solution.
FILE = """
from pathlib import Path
import jax.numpy as jnp
from examples.pinn.domains import Box
from examples.pinn.operators import d, dd
from examples.pinn.problems import (
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
)
"""
DATA = 'read_values(HERE / "data.npz")'
TINY = ["--depth", "2", "--width", "4", "--interior-points", "8", "--seeds", "2"]
TINY += ["--condition-points", "4", "--steps", "4", "--chunk", "2"]
TINY += ["--checkpoint-every", "2"]


def main(*arguments):
    return program.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("own")
    (path / "mine.py").write_text(FILE)
    rng = np.random.default_rng(0)
    points = rng.uniform((0, 0), (1, 2), (9, 2))
    np.savez(path / "data.npz", points=points, v=np.sin(points[:, 0]))
    return path


@pytest.fixture(scope="module")
def trained(folder):
    run = folder / "run"
    arguments = ["--problem", folder / "mine.py", *TINY, "--out", run]
    assert main("train", *arguments) == 0
    return run


def test_history_holds_unknowns_and_a_loss_for_each_condition(trained):
    entry = list(Run(trained).history())[-1]
    terms = {"residual", "initial", "robin", "periodic", "values"}
    assert set(entry["losses"]) == set(entry["term_scales"]) == terms
    (estimates,) = entry["unknowns"]["speed"]
    assert len(estimates) == 2
    assert all(0 < abs(estimate - 0.5) < 0.1 for estimate in estimates)
    assert "speed" not in str(entry["layer_scales"])
    metrics = strict(trained / "metrics.json")
    assert "relative_l2" not in metrics
    assert metrics["errors"] == {}


def test_the_run_needs_the_file_no_longer(trained, folder, tmp_path, capsys):
    """But it goes on with the same file only."""
    points = tmp_path / "points.csv"
    points.write_text("0.5,1.0\n0.25,0.0\n0.5,9.0\n")
    mine = folder / "mine.py"
    mine.rename(folder / "moved.py")
    try:
        arguments = ["--run", trained, "--points", points]
        assert main("evaluate", *arguments, "--out", tmp_path / "fields.npz") == 0
        assert main("evaluate", *arguments, "--out", tmp_path / "fields.npy") == 2
        assert main("plot", "--run", trained) == 0
    finally:
        (folder / "moved.py").rename(mine)
    printed, err = capsys.readouterr()
    assert "1 of 3 points are outside the domain" in printed
    fields = tmp_path / "fields.npz"
    assert f"Field: {fields} (learning rate 0.003, seed 0)" in printed
    assert "--out must end in .npz, got" in err
    found = read_values(tmp_path / "fields.npz")
    assert found["u"].shape == found["v"].shape == (3,)
    assert (trained / "field.png").stat().st_size > 5000
    assert (trained / "unknowns.png").stat().st_size > 5000

    resume = ["train", "--problem", mine, *TINY, "--out", trained, "--resume"]
    assert main(*resume) == 0
    mine.write_text(FILE + "\n# another\n")
    assert main(*resume) == 2
    assert "mine.py has changed since" in capsys.readouterr().err
    mine.write_text(FILE)


def test_the_run_goes_on_with_the_same_data_only(trained, folder, capsys):
    data = folder / "data.npz"
    before, values = data.read_bytes(), read_values(data)
    resume = ["train", "--problem", folder / "mine.py", *TINY, "--out", trained]
    try:
        np.savez(data, **values | {"v": values["v"] + 1e-9})
        own.load.cache_clear()  # as in another process
        assert main(*resume, "--resume") == 2
        err = capsys.readouterr().err
        assert "--resume needs the data of the run" in err
        assert err.count("\n") == 1
        np.savez(data, **values)
        own.load.cache_clear()
        assert main(*resume, "--resume") == 0
    finally:
        data.write_bytes(before)
        own.load.cache_clear()


def test_points_outside_the_domain_are_counted():
    data = {"points": [[0.5, 0.5], [0.5, 3.0]], "u": [1.0, 2.0]}
    conditions = (measured("values", data),)
    problem = dataclasses.replace(PROBLEMS["poisson"], conditions=conditions)
    (outside,) = problem.measured_outside().values()
    assert outside.tolist() == [False, True]


def test_figures_name_the_problem_and_draw_what_there_is(trained):
    run, config = program.load(trained)
    history = list(run.history())
    curves = figures._curves(run, config, history)
    assert [ax.get_ylabel() for ax in curves.axes] == ["loss"]  # there is no solution
    assert curves.axes[0].get_legend().get_title().get_text() == "median; thin: seeds"
    assert curves.get_suptitle().startswith("mine\n")
    terms = figures._terms(run, config, history, 0)
    assert "of mine\n" in terms.get_suptitle()
    layers = figures._scales(run, config, history, 0)
    assert "of mine\n" in layers.axes[0].get_title()
    for figure in (curves, terms, layers):
        figures.plt.close(figure)
    assert figures._aspect(config.find_problem()) == "auto"  # space and time


def test_data_that_is_gone(trained, folder, capsys):
    """Is named as the cause, not the settings of the run."""
    data = folder / "data.npz"
    data.rename(folder / "moved.npz")
    own.load.cache_clear()
    try:
        assert main("plot", "--run", trained) == 2
    finally:
        (folder / "moved.npz").rename(data)
    err = capsys.readouterr().err
    assert re.search(r"mine.py:\d+: needs a file that is not there: .*data.npz", err)
    assert err.count("\n") == 1
    assert "settings" not in err


def test_comparing_runs_without_a_solution_is_by_loss(trained, tmp_path, capsys):
    assert main("compare", trained, "--out", tmp_path / "figure.png") == 0
    assert "loss at the best learning rate" in capsys.readouterr().out
    collected = tmp_path / "runs.json"
    assert main("collect", trained, "--out", collected) == 0
    assert len(json.loads(collected.read_text())["runs"]) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("PROBLEM = ", "OTHER = ", "must define PROBLEM"),
        ("HERE = Path", "HERE = Pth", r"mine.py:11: NameError: name 'Pth'"),
        ("resolution=(5, 6)", "resolution=(5,)", "resolution must be 2 numbers"),
        ("d(1, 0)(", "d(1)(", "operator u_x is for 1 dimensions, and there are 2"),
        ('"u_x": d(1, 0)("u")', '"u_x": d(1, 0)', "u_x must be called with one of"),
        ('"u_x": d', '"u": d', "u names two things"),
        ("robin", "initial", "two terms are called initial"),
        ("u, v, u_t,", "u, w, u_t,", "residual of the equation takes w, which is no"),
        ("u + 2 * u_x", "(u + 2 * u_x)[:, None]", r"condition robin must have shape"),
        ("p[:, 0], u_t", "p[:, :1], u_t", r"target of u must map points of shape"),
        ("face(0, 1.0)", "face(0, 1.5)", r"mine.py:\d+: ValueError: .*1\.5"),
        ("exact_unknowns={", "exact_unknowns={'c': 1.0, ", "exact_unknowns has c"),
        ("    resolution", "    exact=lambda p: p, resolution", "exact must map"),
        ('d(0, 1))("v")', 'dd(0, 1))("v")', r"mine.py:\d+: ValueError: .*order 3"),
        ("v_xt - u", "v_xt - u / [1]", r"mine.py:14: TypeError"),
        ('DOMAIN, 0, "v"', 'DOMAIN, 2, "v"', r"mine.py:\d+: ValueError: .*no axis 2"),
        ('d(1, 0)("u")', "(1, 0)", "operator u_x must be made of d, dd or lap.*tuple"),
        ("lambda points, u, u_x: u + 2 * u_x", "0.0", "condition robin must be a func"),
        ("lambda points, u,", "lambda u,", "residual is the points; .* robin is u"),
        ("lambda points, u, u_x: u + 2 * u_x", "lambda: 0", "robin is nothing"),
        (DATA, "{'points': [[0, 1], [0, 2]], 'u': [1, jnp.nan]}", "1 of 2 values of u"),
        (DATA, "{'points': [[0, jnp.inf], [0, 2]], 'u': [1, 2]}", "1 of 2 points are"),
        (DATA, "{'points': jnp.zeros((0, 2)), 'u': []}", "data hold no points"),
        (DATA, "{'points': [[2, 1]], 'u': [1]}", "all points of values are outside"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_no_folder(
    folder, capsys, tmp_path, old, new, message
):
    assert old in FILE
    path = tmp_path / "mine.py"
    path.write_text(FILE.replace(old, new, 1))
    (tmp_path / "data.npz").write_bytes((folder / "data.npz").read_bytes())
    assert main("train", "--problem", path, *TINY, "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not (tmp_path / "run").exists()


def test_a_problem_that_is_neither_a_name_nor_a_file(capsys, tmp_path):
    for name in ("wave", tmp_path / "missing.py"):
        assert main("train", "--problem", name, "--out", tmp_path / "run") == 2
        assert str(name) in capsys.readouterr().err


DISC = """
import jax.numpy as jnp
from examples.pinn.domains import Disc
from examples.pinn.operators import laplacian
from examples.pinn.problems import Condition, Problem

DISC = Disc((1.0, 0.0), 2.0)

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
SPACE_AND_TIME = """
import numpy as np
from examples.pinn.domains import Box
from examples.pinn.operators import d, laplacian
from examples.pinn.problems import Condition, Problem, given

BOX = Box((0.0, 0.0, 0.0), (1.0, 1.0, 2.0))

PROBLEM = Problem(
    name="plate",
    equation="u_t = 1 on a plate",
    coordinates=("x", "y", "t"),
    domain=BOX,
    operators={"u_t": d(0, 0, 1)},
    residual=lambda points, u_t: u_t - 1,
    conditions=(Condition("initial", BOX.face(2, 0.0)),),
    exact=lambda p: p[:, 2],
    resolution=(4, 5, 6),
)
"""


def test_a_term_that_is_never_finite(tmp_path, capsys):
    """No learning rate would help."""
    (tmp_path / "mine.py").write_text(DISC.replace("laplacian - 4", "laplacian / 0"))
    arguments = ["--problem", tmp_path / "mine.py", *TINY, "--out", tmp_path / "run"]
    quick = ["--depth", 1, "--seeds", 1, "--optimizer", "sgd"]
    assert main("train", *arguments, *quick) == 1
    err = capsys.readouterr().err
    assert "initial weights, this is not finite: the value of residual." in err
    assert "lower" not in err


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        (DISC, ["network", "solution", "network - solution"]),
        (
            SPACE_AND_TIME,
            [
                f"{panel}, t = {t}"
                for panel in ("network", "solution", "network - solution")
                for t in ("0", "0.8", "2")
            ],
        ),
    ],
    ids=["disc", "space and time"],
)
def test_figure_of_the_field(tmp_path, monkeypatch, text, titles):
    """NaN outside of a disc, planes of three dimensions."""
    (tmp_path / "mine.py").write_text(text)
    arguments = ["--problem", tmp_path / "mine.py", *TINY, "--out", tmp_path / "run"]
    assert main("train", *arguments) == 0
    drawn = []
    monkeypatch.setattr(figures.plt, "close", drawn.append)
    assert main("plot", "--run", tmp_path / "run") == 0
    field = next(f for f in drawn if "network" in f.axes[0].get_title())
    panels = [ax for ax in field.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == titles
    inside = np.isfinite(panels[0].images[0].get_array().filled(np.nan))
    assert inside.all() == (text is SPACE_AND_TIME)
    assert inside.any()
    assert panels[0].get_aspect() == 1  # two coordinates of space
    monkeypatch.undo()
    for figure in drawn:
        figures.plt.close(figure)
