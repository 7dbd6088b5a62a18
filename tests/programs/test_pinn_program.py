"""python -m examples.pinn: what it writes, how it ends, how it resumes if killed."""

import contextlib
import io
import json
import math
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from program import ROOT, killed, strict

from examples.common import progress
from examples.common.runs import Run, RunError
from examples.pinn import __main__ as program
from examples.pinn import demo
from examples.pinn.config import Config
from examples.pinn.problems import PROBLEMS
from examples.pinn.train import Program

pytestmark = pytest.mark.usefixtures("quick_compilation")
QUICK_COMPILATION = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}

TINY = ["--depth", "2", "--width", "4", "--interior-points", "8"]
TINY += ["--condition-points", "4", "--lbfgs-points", "8"]
# Chunks end at 4, 6, 10 and 11, each of them with a checkpoint; L-BFGS begins at 6.
SHORT = [*TINY, "--steps", "6", "--chunk", "4", "--checkpoint-every", "3"]
LBFGS = ["--lbfgs-steps", "5", "--terms", "weighted"]
SGD = ["--optimizer", "sgd", "--scale-control", "none"]
# At the second rate nothing stays finite.
RATES = ["--lr", "1e-3", "1e30", "--seeds", "2"]
WHOLE = ["train", *SHORT, *LBFGS, *SGD, *RATES]


def main(*arguments):
    return program.main([str(argument) for argument in arguments])


def copy(run, path):
    shutil.copytree(run, path)
    return path


# --- A run from beginning to end ---


@pytest.fixture(scope="module")
def finished_and_printed(tmp_path_factory):
    """Two rates of two seeds; one rate stops at once."""
    path = tmp_path_factory.mktemp("runs") / "sgd"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(*WHOLE, "--out", path) == 0
    return path, printed.getvalue()


@pytest.fixture(scope="module")
def finished(finished_and_printed):
    return finished_and_printed[0]


@pytest.mark.smoke
def test_metrics_hold_settings_results_and_where_they_are_from(finished):
    metrics = strict(finished / "metrics.json")
    fields = set(Config.__dataclass_fields__) - {"out", "resume"}
    assert set(metrics["settings"]) == fields
    assert metrics["settings"]["dtype"] == "float32"
    assert metrics["settings"]["matmul_precision"] == "highest"
    assert metrics["settings"] == strict(finished / "settings.json")
    assert np.shape(metrics["relative_l2"]) == np.shape(metrics["loss"]) == (2, 2)
    assert np.isfinite(metrics["relative_l2"][0]).all()
    assert metrics["steps_per_second"] > 0
    assert metrics["compile_seconds"] > 0
    assert metrics["device"]
    assert set(metrics["versions"]) == {"python", "jax", "optax", "stablegrad_optax"}


def test_history_holds_a_line_for_each_chunk(finished):
    history = list(Run(finished).history())
    assert [entry["step"] for entry in history] == [4, 6, 10, 11]
    metrics = strict(finished / "metrics.json")
    assert history[-1]["relative_l2"] == metrics["relative_l2"]
    assert history[-1]["loss"] == metrics["loss"]
    for entry in history:
        scales = entry["layer_scales"]
        assert np.shape(scales["params/first"]) == (2, 2)
        assert np.shape(scales["params/hidden"]) == (2, 2, 1)
        is_first_order = entry["step"] <= 6
        terms = ["boundary", "residual"] if is_first_order else []
        assert sorted(entry["losses"]) == sorted(entry["term_scales"]) == terms
        for term in terms:
            assert np.shape(entry["term_scales"][term]) == (2, 2)
            cosines = entry["term_alignment"]
            np.testing.assert_allclose(cosines[term][term][0], 1, rtol=1e-3)
            for other in terms:
                assert cosines[term][other][0] == cosines[other][term][0]
        for scale in np.ravel(scales["params/hidden"][0]):
            assert len(f"{scale:g}") <= 10  # a few digits


def test_column_that_is_not_finite_stops_and_the_others_go_on(finished, tmp_path):
    stopped_at = strict(finished / "metrics.json")["stopped_at_step"]
    assert stopped_at[0] == [-1, -1]
    assert min(stopped_at[1]) >= 0
    # Beside a rate at which everything stays finite, the numbers are the same.
    other = tmp_path / "other"
    rates = ["--lr", "1e-3", "1e-4", "--seeds", 2]
    weighted = ["--terms", "weighted"]
    assert main("train", *SHORT, *weighted, *SGD, *rates, "--out", other) == 0
    beside = list(Run(other).history())
    assert len(beside) == 2
    for entry, again in zip(Run(finished).history(), beside, strict=False):
        for key in ("loss", "relative_l2"):
            assert entry[key][0] == again[key][0]
            assert np.isfinite(again[key]).all()


def test_stopped_columns_are_reported_and_end_the_run(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", *SHORT, *LBFGS, *SGD, "--lr", "1e30", "--seeds", 4]
    assert main(*arguments, "--out", out) == 1
    printed, err = capsys.readouterr()
    metrics = strict(out / "metrics.json")
    (stopped_at,) = metrics["stopped_at_step"]
    for seed, step in enumerate(stopped_at):
        line = f"Learning rate 1e+30, seed {seed}: no longer finite at step {step}"
        assert line in printed
    assert "no learning rate and seed is left: ended at step 4. Try lower" in err
    assert err.count("\n") == 1
    assert [entry["step"] for entry in Run(out).history()] == [4]
    assert main("plot", "--run", out) == 0
    assert main("compare", out, "--out", tmp_path / "comparison.png") == 0
    # If it was killed before it wrote its metrics, there is nothing left to do either.
    (out / "metrics.json").unlink()
    assert main(*arguments, "--out", out, "--resume") == 1
    resumed = strict(out / "metrics.json")
    assert resumed["stopped_at_step"] == metrics["stopped_at_step"]
    assert resumed["steps_per_second"] is None


def test_log_has_a_line_now_and_then(finished_and_printed):
    """And each line has the error of all seeds."""
    lines = finished_and_printed[1].splitlines()
    progress = [line for line in lines if line.startswith("poisson ")]
    done = [line.split(",")[0] for line in progress]
    assert done == [f"poisson {step}/11" for step in (4, 6, 10, 11)]
    for line in progress:
        assert " s left, error " in line
        assert len(line.split("error ")[1].split()) == 2


def test_resuming_a_finished_run_changes_nothing(finished, capsys):
    before = {path: path.read_bytes() for path in finished.glob("*.json*")}
    assert main(*WHOLE, "--out", finished, "--resume") == 0
    assert "finished already: nothing to do" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in finished.glob("*.json*")}


def test_evaluate_gives_the_field_that_the_error_is_of(finished, tmp_path):
    problem = PROBLEMS["poisson"]
    grid = problem.grid()
    points, out = tmp_path / "points.npy", tmp_path / "new" / "u.npy"
    np.save(points, grid)
    for seed in (0, 1):
        assert (
            main(
                *("evaluate", "--run", finished, "--points", points),
                *("--out", out, "--seed", seed),
            )
            == 0
        )
        u, exact = np.load(out), problem.exact(grid)
        assert u.shape == (len(grid),)
        error = np.linalg.norm(u - exact) / np.linalg.norm(exact)
        expected = strict(finished / "metrics.json")["relative_l2"][0][seed]
        assert math.isclose(error, expected, rel_tol=1e-5)


def test_plot_draws_field_curves_and_layer_scales(finished, tmp_path):
    run = copy(finished, tmp_path / "run")
    assert main("plot", "--run", run) == 0
    for name in ("field.png", "curves.png", "layer_scales.png", "terms.png"):
        assert (run / name).stat().st_size > 5000


@pytest.mark.smoke
def test_demo_prints_a_table_and_draws_a_figure(tmp_path, capsys, monkeypatch):
    compared = {name: demo.METHODS[name] for name in demo.COMPARED}
    monkeypatch.setattr(demo, "METHODS", compared)
    small = {**demo.CASES["burgers"], "depth": 1}
    monkeypatch.setattr(demo, "CASES", {"burgers": small})
    arguments = ["demo", "--out", tmp_path, "--steps", 2, "--seeds", 2]
    assert main(*arguments) == 0
    printed = capsys.readouterr().out
    for text in ("burgers, weight 1", "burgers, balanced", "Figure:", "steps/s"):
        assert text in printed
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    runs = strict(tmp_path / "demo.json")["runs"]
    assert [run["settings"]["terms"] for run in runs] == ["weighted", "balanced"]
    for run in runs:
        assert np.shape(run["relative_l2"]) == (1, 2)
        assert np.isfinite(run["relative_l2"]).all()


def test_demo_ends_with_the_first_method_that_fails(tmp_path, capsys, monkeypatch):
    """The others do not go on behind the back of whoever reads the message."""
    interrupted = []

    def train(config, console, bars):
        if config.out.name == "poisson, weight 1":
            raise RunError("no space left.")
        with progress.Steps(console, "", 10**6, 0, bars) as steps:
            for step in range(10**6):
                try:
                    steps.show(step, "")
                except KeyboardInterrupt:
                    interrupted.append(config.out.name)
                    raise

    monkeypatch.setattr(demo, "train", train)
    assert main("demo", "--out", tmp_path) == 2
    assert capsys.readouterr().err == "error: no space left.\n"
    others = set(demo.Demo(tmp_path).runs()) - {"poisson, weight 1"}
    assert sorted(interrupted) == sorted(others)


# --- Killed and resumed ---


def columns_of(path):
    """All parameters and states of optimizers at the end of a run."""
    _, config = program.load(path)
    return Run(path).restore(Program(config).template)


def test_killed_and_resumed_it_ends_with_the_same_bytes(finished, tmp_path, capsys):
    """At the boundary of the two phases, and within the second."""
    run = tmp_path / "killed"
    killed("pinn", 6, *WHOLE, "--out", run, **QUICK_COMPILATION)
    printed = killed("pinn", 10, *WHOLE, "--out", run, "--resume", **QUICK_COMPILATION)
    assert "Resumed at step 6." in printed
    # And a line that was being written.
    with (run / "history.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": [[1.0')
    assert not Run(run).finished
    assert main(*WHOLE, "--out", run, "--resume") == 0
    assert "Resumed at step 10." in capsys.readouterr().out

    histories = [(path / "history.jsonl").read_bytes() for path in (finished, run)]
    assert histories[0] == histories[1]
    once, resumed = strict(finished / "metrics.json"), strict(run / "metrics.json")
    for key in ("steps_per_second", "compile_seconds"):
        del once[key], resumed[key]
    assert once == resumed
    (last, expected), (again, columns) = columns_of(finished), columns_of(run)
    assert last == again == 11
    jax.tree.map(np.testing.assert_array_equal, columns, expected)


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
        (["--problem", "wave"], "--problem must be one of poisson, poisson1d, helmh"),
        (["--optimizer", "newton"], "--optimizer"),
        (["--depth", "0"], "--depth must be at least 1, got 0."),
        (["--width", "-1"], "--width must be at least 1, got -1."),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--chunk", "0"], "--chunk must be at least 1"),
        (["--checkpoint-every", "0"], "--checkpoint-every must be at least 1"),
        (["--interior-points", "0"], "--interior-points must be at least 1, got 0."),
        (["--condition-points", "0"], "--condition-points must be at least 1"),
        (["--lbfgs-points", "0"], "--lbfgs-points must be at least 1"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--steps", "-1"], "--steps must be at least 0"),
        (["--lbfgs-steps", "-1"], "--lbfgs-steps must be at least 0"),
        (["--lr", "-1e-3"], "--lr must be one positive, finite number"),
        (["--lr", "1e-3", "nan"], "--lr must be one positive, finite number"),
        (["--lr", "inf"], "--lr must be one positive, finite number"),
        (["--lr", "0"], "--lr must be one positive, finite number"),
        (["--lr", "1e-3", "0.001"], "--lr must be different numbers"),
        (["--lr", "fast"], "--lr"),
        (["--condition-weight", "nan"], "--condition-weight must be a positive"),
        (["--condition-weight", "10"], "must be left out, or --terms weighted, got 10"),
        (["--lbfgs-steps", "10"], "--lbfgs-steps must be 0 unless --terms weighted"),
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


def test_one_line_and_exit_code_2_from_the_shell():
    result = subprocess.run(
        [sys.executable, "-m", "examples.pinn", "demo", "--steps", "-1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 2
    assert result.stderr == "error: --steps must be at least 0, got -1.\n"
    assert result.stdout == ""


def test_folders_that_train_does_not_take(capsys, finished, tmp_path):
    assert "add --resume" in mistake(capsys, *WHOLE, "--out", finished)
    other = [*WHOLE, "--width", 5, "--resume", "--out", finished]
    assert "--resume needs the settings of the run: width was 4" in mistake(
        capsys, *other
    )
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "below"):
        message = mistake(capsys, *WHOLE, "--out", out)
        assert "--out must be a folder that can be written to" in message
        message = mistake(capsys, "demo", "--out", out)
        assert "--out must be a folder that can be written to" in message
    corrupt = copy(finished, tmp_path / "corrupt")
    (corrupt / "settings.json").write_text('{"depth": ')
    message = mistake(capsys, *WHOLE, "--resume", "--out", corrupt)
    assert "settings.json" in message


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros(4), "shape (n, 2), got float64 of shape (4,)"),
        (np.zeros((4, 3)), "shape (n, 2), got float64 of shape (4, 3)"),
        (np.zeros((0, 2)), "shape (n, 2), got float64 of shape (0, 2)"),
        (np.full((4, 2), np.nan), "got some that are not finite"),
        (np.full((4, 2), "a"), "real numbers, shape (n, 2), got <U1"),
        (np.zeros((4, 2), complex), "got complex128"),
        (np.zeros((4, 2), bool), "got bool"),
        (np.full((4, 2), None), "cannot read"),  # pickled
        (b"", "cannot read"),
        (b"text", "cannot read"),
        (None, "cannot read"),
    ],
)
def test_bad_points(capsys, finished, tmp_path, points, message):
    path, out = tmp_path / "points.npy", tmp_path / "u.npy"
    if isinstance(points, bytes):
        path.write_bytes(points)
    elif points is not None:
        np.save(path, points)
    line = mistake(
        capsys, "evaluate", "--run", finished, "--points", path, "--out", out
    )
    assert "--points must be a NumPy file" in line
    assert message in line
    assert not line.endswith("..\n")
    assert not out.exists()


def test_archive_of_points(capsys, finished, tmp_path):
    path = tmp_path / "points.npz"
    np.savez(path, a=np.zeros((4, 2)))
    line = mistake(
        capsys, "evaluate", "--run", finished, "--points", path, "--out", "u.npy"
    )
    assert "--points must be a NumPy file" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "99"], "--seed must be from 0 to 1, got 99."),
        (["--seed", "-1"], "--seed must be from 0 to 1, got -1."),
        (["--lr-index", "1"], "no longer finite. --lr-index 0 --seed 0 did not stop."),
        (["--lr-index", "2"], "--lr-index must be from 0 to 1, got 2."),
        (["--out", "{folder}"], "--out must be a file"),
        (["--out", "{folder}/u.npz"], "--out must end in .npy, got"),
        (["--out", "{points}/u.npy"], "--out must be a folder that can be written to"),
        (["--run", "{folder}"], "is not a finished run"),
    ],
)
def test_bad_options_of_evaluate(capsys, finished, tmp_path, options, message):
    points = tmp_path / "points.npy"
    np.save(points, np.zeros((4, 2)))
    options = [o.format(folder=tmp_path, points=points) for o in options]
    arguments = ["--run", finished, "--points", points, "--out", tmp_path / "u.npy"]
    assert message in mistake(capsys, "evaluate", *arguments, *options)


def test_commands_that_need_a_finished_run(capsys, finished, tmp_path):
    unfinished = copy(finished, tmp_path / "unfinished")
    (unfinished / "metrics.json").unlink()
    for path in (unfinished, tmp_path / "missing", tmp_path):
        for arguments in (
            ["plot", "--run", path],
            ["compare", finished, path, "--out", tmp_path / "figure.png"],
            ["collect", finished, path, "--out", tmp_path / "runs.json"],
        ):
            message = mistake(capsys, *arguments)
            assert f"{path} is not a finished run" in message
    for name in ("a.pdf", "a.xyz", "a"):
        message = mistake(capsys, "compare", finished, "--out", tmp_path / name)
        assert f"--out must end in .png, got {tmp_path / name}." in message
        assert not (tmp_path / name).exists()
    assert "compare needs" in mistake(capsys, "compare")
    assert "collect needs" in mistake(capsys, "collect", "--out", tmp_path / "a.json")


def test_settings_of_another_program(capsys, finished, tmp_path):
    other = copy(finished, tmp_path / "other")
    for settings in ({"classes": 10}, {"lr": [1e-3], "depth": 0}):
        (other / "settings.json").write_text(json.dumps(settings))
        message = mistake(capsys, "plot", "--run", other)
        assert "are not those of this program" in message
        assert not message.endswith("..\n")
