"""python -m examples.pinn: what it writes, how it ends, how it resumes if killed."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from program import killed, strict

from examples.common.runs import Recording, Run
from examples.pinn import __main__ as program
from examples.pinn import step as training_step
from examples.pinn import train
from examples.pinn.columns import template
from examples.pinn.config import Config
from examples.pinn.objective import Objective
from examples.pinn.problems import PROBLEMS

pytestmark = pytest.mark.usefixtures("quick_compilation")
QUICK_COMPILATION = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}

# Chunks end at 4, 6, 10 and 14, each of them with a checkpoint; Gauss-Newton begins at
# 6.
SHORT = ["train", "--problem", "poisson1d", "--depth", 2, "--width", 4, "--seeds", 2]
SHORT += ["--interior-points", 8, "--condition-points", 4, "--lbfgs-points", 8]
SHORT += ["--steps", 6, "--chunk", 4, "--checkpoint-every", 3, "--optimizer", "adam"]
NO_MORE = ["--gauss-newton-steps", 0]
SHORT += NO_MORE
SGD = [*SHORT, "--optimizer", "sgd", "--terms", "weighted"]
TWO = [*SGD, "--gauss-newton-steps", 8, "--lr", 1e-3, 1e30]


def main(*arguments):
    return program.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two rates of two seeds; at the second rate nothing stays finite."""
    path = tmp_path_factory.mktemp("runs") / "sgd"
    assert main(*TWO, "--out", path) == 0
    return path


@pytest.mark.smoke
def test_what_a_run_records(finished):
    metrics = strict(finished / "metrics.json")
    not_settings = {"out", "resume"}
    assert set(metrics["settings"]) == set(Config.__dataclass_fields__) - not_settings
    assert metrics["settings"] == strict(finished / "settings.json")
    assert np.shape(metrics["relative_l2"]) == np.shape(metrics["loss"]) == (2, 2)
    assert np.isfinite(metrics["relative_l2"][0]).all()
    assert metrics["steps_per_second"] > 0 < metrics["compile_seconds"]
    assert np.shape(metrics["shares"]["residual"]) == (2, 2)
    history = list(Run(finished).history())
    assert [entry["step"] for entry in history] == [4, 6, 10, 14]
    assert history[-1]["relative_l2"] == metrics["relative_l2"]
    for entry in history:
        assert np.shape(entry["layer_scales"]["params/hidden"]) == (2, 2, 1)
        terms = {"boundary", "residual"}
        assert set(entry["losses"]) == set(entry["shares"]) == terms
        # What is minimised is the sum that the options name, by whatever optimizer.
        losses = {name: np.array(x[0]) for name, x in entry["losses"].items()}
        expected = losses["residual"] + 100 * losses["boundary"]
        np.testing.assert_allclose(entry["loss"][0], expected, rtol=1e-5)
        is_first_order = entry["step"] <= 6
        for key in ("term_scales", "term_alignment", "term_weights"):
            assert set(entry[key]) == (terms if is_first_order else set())
        if is_first_order:
            cosines = entry["term_alignment"]
            np.testing.assert_allclose(cosines["boundary"]["boundary"][0], 1, rtol=1e-3)
            assert np.shape(cosines["boundary"]["residual"]) == (2, 2)
            assert entry["term_weights"]["boundary"][0] == [100, 100]


def test_a_column_that_is_not_finite_stops_and_the_others_go_on(finished, tmp_path):
    stopped_at = strict(finished / "metrics.json")["stopped_at_step"]
    assert stopped_at[0] == [-1, -1]
    assert min(stopped_at[1]) >= 0
    # Beside a rate at which everything stays finite, the numbers are the same.
    other = tmp_path / "other"
    assert main(*SGD, "--lr", 1e-3, 1e-4, "--out", other) == 0
    histories = Run(finished).history(), Run(other).history()
    for entry, again in zip(*histories, strict=False):
        for key in ("loss", "relative_l2"):
            assert entry[key][0] == again[key][0]
            assert np.isfinite(again[key]).all()


def test_stopped_columns_are_reported_and_end_the_run(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(*SGD, "--lr", 1e30, 1e31, "--out", out) == 1
    printed, err = capsys.readouterr()
    for lr, row in zip(
        ("1e+30", "1e+31"), strict(out / "metrics.json")["stopped_at_step"], strict=True
    ):
        for seed, step in enumerate(row):
            line = f"Learning rate {lr}, seed {seed}: no longer finite at step {step}"
            assert line in printed
    assert "no learning rate and seed is left: ended at step 4. Try lower" in err
    assert err.count("\n") == 1
    assert main("plot", "--run", out) == 0


def assert_same_bytes(never, resumed):
    """All numbers of two runs, but for their speed."""
    one, other = (strict(path / "metrics.json") for path in (never, resumed))
    for key in ("steps_per_second", "compile_seconds"):
        del one[key], other[key]
    assert one == other
    one, other = ((path / "history.jsonl").read_bytes() for path in (never, resumed))
    assert one == other
    config = train.load(resumed)[1]
    objective = Objective(config)
    phases = training_step.phases_of(objective)
    one, other = (
        Run(path).restore(lambda step: template(objective, phases, step))
        for path in (never, resumed)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_killed_and_resumed_it_ends_with_the_same_bytes(tmp_path, capsys):
    """The memory of balanced terms is in a checkpoint."""
    never, out = tmp_path / "never", tmp_path / "killed"
    assert main(*SHORT, "--out", never) == 0
    # After six steps nothing is solved, and it says so, at first half way.
    printed = capsys.readouterr().out
    assert "half of the steps of adam done. Not solved: " in printed
    assert printed.count("'residual' is ") == 2
    assert re.search(r"about \d+ s of adam\.\n", printed)
    killed("pinn", 4, *SHORT, "--out", out, **QUICK_COMPILATION)
    assert not Run(out).finished
    assert main(*SHORT, "--out", out, "--resume") == 0
    assert "Resumed at step 4." in capsys.readouterr().out
    assert_same_bytes(never, out)
    before = {path: path.read_bytes() for path in out.glob("*.json*")}
    assert main(*SHORT, "--out", out, "--resume") == 0
    assert "finished already: nothing to do" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in out.glob("*.json*")}


def test_interrupted_between_phases_and_within_one(finished, tmp_path, monkeypatch):
    out, save = tmp_path / "run", Recording.save

    def save_and_interrupt(run, step, state):
        save(run, step, state)
        if step in (6, 10):  # between two phases, and within the last
            raise KeyboardInterrupt

    monkeypatch.setattr(Recording, "save", save_and_interrupt)
    for _ in range(2):
        assert main(*TWO, "--out", out, "--resume") == 130
    monkeypatch.undo()
    assert main(*TWO, "--out", out, "--resume") == 0
    assert_same_bytes(finished, out)


def test_figures_and_the_field_that_the_error_is_of(finished, tmp_path):
    assert main("plot", "--run", finished) == 0
    for name in ("field.png", "curves.png", "layer_scales.png", "terms.png"):
        assert (finished / name).stat().st_size > 5000
    problem = PROBLEMS["poisson1d"]
    grid = problem.grid()
    points, out = tmp_path / "points.npy", tmp_path / "new" / "u.npy"
    np.save(points, grid)
    arguments = ["--run", finished, "--points", points, "--out", out, "--seed", 1]
    assert main("evaluate", *arguments) == 0
    u, exact = np.load(out), problem.exact(grid)
    error = np.linalg.norm(u - exact) / np.linalg.norm(exact)
    expected = strict(finished / "metrics.json")["relative_l2"][0][1]
    np.testing.assert_allclose(error, expected, rtol=1e-5)


def test_double_precision_and_lbfgs(tmp_path):
    arguments = [*SGD, "--depth", 1, "--steps", 1, "--dtype", "float64"]
    arguments += ["--lbfgs-steps", 2]
    arguments += ["--matmul-precision", "high", "--out", tmp_path]
    assert main(*arguments) == 0
    assert jax.config.jax_default_matmul_precision == "high"
    error, _ = strict(tmp_path / "metrics.json")["relative_l2"][0]
    assert error != float(np.float32(error))
    assert [entry["step"] for entry in Run(tmp_path).history()] == [1, 3]


def test_the_first_lines_say_what_is_trained_and_what_is_not_used():
    options = {"interior_points": 8, "condition_points": 4, "lr": (1e-3, 1e-2)}
    options |= {"order": "after", "group_by": "leaf"}
    config = Config(Path("unused"), problem="heat", **options)
    out = train.describe(Objective(config))
    assert "5 layers of 50, 8 points inside, 4 on each condition, 3300 steps" in out
    assert "learning rates 0.001, 0.01, 3 seeds." in out
    assert "Not used: --group-by without --scale-control stablegrad; --order" in out


# --- Mistakes: one line that names the option, exit code 2, and nothing done ---


def mistake(capsys, *arguments):
    assert main(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--problem", "none"], "--problem must be one of poisson, poisson1d, helmh"),
        (["--depth", "0"], "--depth must be at least 1, got 0."),
        (["--steps", "0", *NO_MORE], "--steps must be at least 1"),
        (["--lr", "1e-3", "nan"], "--lr must be one positive, finite number"),
        (["--lr", "1e-3", "0.001"], "--lr must be different numbers"),
        (["--condition-weight", "10"], "must be left out, or --terms weighted, got 10"),
        (
            ["--scale-control", "stablegrad-prediction"],
            "--scale-control must be another unless --terms weighted",
        ),
        (
            ["--activation", "softplus", "--initialization", "critical"],
            "--initialization critical does not go with --activation softplus",
        ),
    ],
)
def test_bad_options(capsys, tmp_path, options, message):
    out = tmp_path / "run"
    assert message in mistake(capsys, "train", *options, "--out", out)
    assert not out.exists()


def test_commands_that_need_a_finished_run_of_this_program(capsys, finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    (other / "settings.json").write_text('{"classes": 10}')
    message = mistake(capsys, "plot", "--run", other)
    assert "are not those of this program" in message
    (other / "metrics.json").unlink()
    for arguments in (
        ["plot", "--run", other],
        ["compare", finished, other, "--out", tmp_path / "figure.png"],
        ["collect", finished, other, "--out", tmp_path / "runs.json"],
    ):
        assert f"{other} is not a finished run" in mistake(capsys, *arguments)
    message = mistake(capsys, "compare", finished, "--out", tmp_path / "a.pdf")
    assert "--out must end in .png" in message
    assert "needs the folders of one run" in mistake(capsys, "compare")


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (np.zeros((4, 3)), [], "shape (n, 1), got shape (4, 3)"),
        (np.full((4, 1), np.nan), [], "or NaN or inf"),
        (np.full((4, 1), "a"), [], "cannot read"),
        (np.full((4, 1), None), [], "cannot read"),  # pickled
        (np.zeros((4, 1)), ["--seed", "99"], "--seed below 2, got 0 and 99."),
        (np.zeros((4, 1)), ["--lr-index", "1"], "no longer finite"),
        (np.zeros((4, 1)), ["--out", "u.npz"], "end in .npy, for u, got"),
    ],
)
def test_bad_options_of_evaluate(capsys, finished, tmp_path, points, options, message):
    path, out = tmp_path / "points.npy", tmp_path / "u.npy"
    np.save(path, points)
    arguments = ["--run", finished, "--points", path, "--out", out, *options]
    assert message in mistake(capsys, "evaluate", *arguments)
    assert not out.exists()
