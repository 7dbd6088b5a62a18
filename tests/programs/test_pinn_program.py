"""python -m examples.pinn: what it writes, how it ends, how it goes on if killed."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from program import ROOT, killed, strict

from examples.common.runs import Run
from examples.pinn import __main__ as program
from examples.pinn.config import Config
from examples.pinn.problems import PROBLEMS

pytestmark = pytest.mark.usefixtures("compiled_once")

TINY = ["--depth", "2", "--width", "4", "--interior-points", "8"]
TINY += ["--condition-points", "4", "--lbfgs-points", "8"]
# Chunks end at 3, 6 and 7, checkpoints are written at 6 and at the end.
SHORT = [*TINY, "--steps", "7", "--chunk", "3", "--checkpoint-every", "4"]
# The second rate is one at which nothing stays finite.
RATES = ["--lr", "1e-3", "1e30"]
SGD = ["--optimizer", "sgd", "--scale-control", "none"]


def main(*arguments):
    return program.main([str(argument) for argument in arguments])


def copy(run, path):
    shutil.copytree(run, path)
    return path


# --- A run from beginning to end ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two rates, one of which stops at once, of two seeds."""
    path = tmp_path_factory.mktemp("runs") / "sgd"
    assert main("train", *SHORT, *SGD, *RATES, "--seeds", 2, "--out", path) == 0
    return path


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
    assert [entry["step"] for entry in history] == [3, 6, 7]
    metrics = strict(finished / "metrics.json")
    assert history[-1]["relative_l2"] == metrics["relative_l2"]
    assert history[-1]["loss"] == metrics["loss"]
    for entry in history:
        scales = entry["layer_scales"]
        assert np.shape(scales["params/first"]) == (2, 2)
        assert np.shape(scales["params/hidden"]) == (2, 2, 1)
        for scale in np.ravel(scales["params/hidden"][0]):
            assert len(f"{scale:g}") <= 10  # a few digits


def test_column_that_is_not_finite_stops_and_the_others_go_on(finished, tmp_path):
    stopped_at = strict(finished / "metrics.json")["stopped_at_step"]
    assert stopped_at[0] == [-1, -1]
    assert min(stopped_at[1]) >= 0
    alone = tmp_path / "alone"
    arguments = [*SHORT, *SGD, "--lr", "1e-3", "--seeds", 2, "--out", alone]
    assert main("train", *arguments) == 0
    for beside, by_itself in zip(
        Run(finished).history(), Run(alone).history(), strict=True
    ):
        for key in ("loss", "relative_l2"):
            np.testing.assert_allclose(beside[key][0], by_itself[key][0], rtol=1e-4)


def test_stopped_columns_are_reported_and_end_the_run(tmp_path, capsys):
    """A depth of one, for the figures too: there is no stack of layers."""
    out = tmp_path / "run"
    arguments = [*SHORT, "--depth", 1, "--problem", "poisson1d", *SGD, "--lr", "1e30"]
    arguments += ["--steps", 1000, "--lbfgs-steps", 5, "--seeds", 2, "--out", out]
    assert main("train", *arguments) == 0
    printed = capsys.readouterr().out
    metrics = strict(out / "metrics.json")
    (stopped_at,) = metrics["stopped_at_step"]
    for seed, step in enumerate(stopped_at):
        assert (
            f"Learning rate 1e+30, seed {seed}: no longer finite at step {step}"
            in printed
        )
    last = list(Run(out).history())[-1]["step"]
    assert last < 1000
    assert f"No learning rate and seed is left: ended at step {last}." in printed
    assert main("plot", "--run", out) == 0
    assert main("compare", out, "--out", tmp_path / "comparison.png") == 0
    # One that was killed before it wrote its metrics has nothing left to do either.
    (out / "metrics.json").unlink()
    assert main("train", *arguments, "--resume") == 0
    resumed = strict(out / "metrics.json")
    assert resumed["stopped_at_step"] == metrics["stopped_at_step"]
    assert resumed["steps_per_second"] is None


def test_log_has_a_line_now_and_then(finished, tmp_path, capsys):
    """And each says where all seeds stand."""
    run = copy(finished, tmp_path / "run")
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "checkpoints")
    arguments = [*SHORT, *SGD, *RATES, "--seeds", 2, "--out", run]
    assert main("train", *arguments, "--resume") == 0
    lines = capsys.readouterr().out.splitlines()
    progress = [line for line in lines if line.startswith("poisson ")]
    assert [line.split(",")[0] for line in progress] == [
        "poisson 3/7",
        "poisson 6/7",
        "poisson 7/7",
    ]
    for line in progress:
        assert " s left, error " in line
        assert len(line.split("error ")[1].split()) == 2
    # From the beginning: the same numbers.
    for entry, again in zip(Run(finished).history(), Run(run).history(), strict=True):
        assert entry == again


def test_resuming_a_finished_run_changes_nothing(finished, capsys):
    before = {path: path.read_bytes() for path in finished.glob("*.json*")}
    arguments = [*SHORT, *SGD, *RATES, "--seeds", 2, "--out", finished]
    assert main("train", *arguments, "--resume") == 0
    assert "finished already: nothing to do" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in finished.glob("*.json*")}


def test_evaluate_gives_the_field_that_the_error_is_of(finished, tmp_path):
    problem = PROBLEMS["poisson"]
    grid = problem.grid().reshape(-1, 2)
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
    for name in ("field.png", "curves.png", "layer_scales.png"):
        assert (run / name).stat().st_size > 5000


# --- Killed and resumed ---


def columns_of(path):
    """All parameters and states of optimizers at the end of a run."""
    from examples.pinn.train import Program

    _, config = program.load(path)
    return Run(path).restore(Program(config).template)


def test_killed_and_resumed_it_ends_with_the_same_numbers(tmp_path, capsys):
    """At the boundary of both phases, and within the second."""
    # Chunks end at 4, 6, 10 and 11: all after a checkpoint. The boundary is 6.
    arguments = ["train", *TINY, "--depth", 1, "--problem", "poisson1d"]
    arguments += [
        "--steps",
        6,
        "--lbfgs-steps",
        5,
        "--chunk",
        4,
        "--checkpoint-every",
        3,
    ]
    arguments += ["--lr", "1e-3", "1e-2", "--seeds", 2, "--out"]
    never, run = tmp_path / "never", tmp_path / "killed"
    assert main(*arguments, never) == 0

    killed("pinn", 6, *arguments, run)
    printed = killed("pinn", 10, *arguments, run, "--resume")
    assert "Resumed at step 6." in printed
    # And a line that was being written.
    with (run / "history.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": [[1.0')
    assert not Run(run).finished
    assert main(*arguments, run, "--resume") == 0
    assert "Resumed at step 10." in capsys.readouterr().out

    assert (run / "history.jsonl").read_text() == (never / "history.jsonl").read_text()
    once, resumed = strict(never / "metrics.json"), strict(run / "metrics.json")
    for key in ("steps_per_second", "compile_seconds"):
        del once[key], resumed[key]
    assert once == resumed
    (last, expected), (again, columns) = columns_of(never), columns_of(run)
    assert last == again == 11
    jax.tree.map(np.testing.assert_array_equal, columns, expected)


# --- Every choice of an option ---


def step(**options):
    """Shapes of what a step gives: traced, not compiled."""
    from examples.pinn.objective import Objective, network_of
    from examples.pinn.phases import FirstOrder

    config = Config(out=Path("unused"), **{"depth": 2, "width": 4} | options)
    config.check()
    problem, network = PROBLEMS[config.problem], network_of(config)
    phase = FirstOrder(Objective(config, problem, network), 0, config.steps)

    def one():
        points = np.zeros((1, problem.dimension), config.dtype)
        params = network.init(jax.random.key(0), points)
        return params, phase.update(params, phase.init(params, 0.1), 0.1, 0, 0)

    params, update = jax.eval_shape(one)
    same = jax.tree.map(lambda a, b: a.shape == b.shape, update.params, params)
    assert jax.tree.all(same)
    return update


@pytest.mark.parametrize("problem", sorted(PROBLEMS))
def test_every_problem_trains(problem):
    assert step(problem=problem).loss.shape == ()


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "lion", "scale_control": "normalize", "points": "fixed"},
        {"scale_control": "stablegrad-prediction", "schedule": "exponential"},
        {"optimizer": "sgd", "scale_control": "agc"},
        {"scale_control": "clip", "schedule": "constant", "initialization": "critical"},
        {"group_by": "tree", "statistic": "rms", "activation": "silu"},
        {"group_by": "leaf", "initialization": "variance-preserving", "order": "after"},
    ],
)
def test_every_option_trains(options):
    assert step(**options).loss.shape == ()


@pytest.mark.skipif(
    not hasattr(optax.contrib, "MuonDimensionNumbers"), reason="needs optax 0.2.6"
)
def test_muon_trains():
    assert step(optimizer="muon").loss.shape == ()


def test_stablegrad_after_the_base_sets_the_scale_of_the_update():
    """Each layer then moves by the learning rate, whatever the base had in mind."""
    from examples.pinn.phases import optimizer_of

    config = Config(
        out=Path("unused"), depth=3, width=4, schedule="constant", order="after"
    )
    weights = {"kernel": jax.random.normal(jax.random.key(0), (2, 5, 5))}
    tree = {"params": {"hidden": weights}}
    for lr in (1e-3, 1e-1):
        tx = optimizer_of(config, lr)
        updates, _ = tx.update(tree, tx.init(tree), tree)
        for kernel in updates["params"]["hidden"]["kernel"]:
            np.testing.assert_allclose(kernel.std(), lr, rtol=1e-5)


def test_double_precision(tmp_path):
    out = tmp_path / "run"
    arguments = [*TINY, "--depth", 1, "--problem", "poisson1d", "--steps", 2]
    arguments += [
        *SGD,
        "--seeds",
        1,
        "--dtype",
        "float64",
        "--matmul-precision",
        "high",
    ]
    assert main("train", *arguments, "--out", out) == 0
    assert jax.config.jax_default_matmul_precision == "high"
    (error,) = strict(out / "metrics.json")["relative_l2"][0]
    assert error != float(np.float32(error))
    np.save(tmp_path / "points.npy", np.zeros((3, 1)))
    arguments = ["--points", tmp_path / "points.npy", "--out", tmp_path / "u.npy"]
    assert main("evaluate", "--run", out, *arguments) == 0
    assert np.load(tmp_path / "u.npy").dtype == np.float64


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
        (["--problem", "wave"], "--problem"),
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
        [sys.executable, "-m", "examples.pinn", "train", "--problem", "wave"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for name in ("--problem", *PROBLEMS):
        assert name in line


def test_folders_that_train_does_not_take(capsys, finished, tmp_path):
    arguments = ["train", *SHORT, *SGD, *RATES, "--seeds", 2]
    assert "add --resume" in mistake(capsys, *arguments, "--out", finished)
    other = [*arguments, "--width", 5, "--resume", "--out", finished]
    assert "--resume needs the settings of the run: width was 4" in mistake(
        capsys, *other
    )
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "below"):
        message = mistake(capsys, *arguments, "--out", out)
        assert "--out must be a folder that can be written to" in message
    corrupt = copy(finished, tmp_path / "corrupt")
    (corrupt / "settings.json").write_text('{"depth": ')
    message = mistake(capsys, *arguments, "--resume", "--out", corrupt)
    assert "settings.json" in message


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros(4), "of shape (n, 2), got (4,)"),
        (np.zeros((4, 3)), "of shape (n, 2), got (4, 3)"),
        (np.zeros((0, 2)), "of shape (n, 2), got (0, 2)"),
        (np.full((4, 2), np.nan), "finite numbers"),
        (np.full((4, 2), "a"), "real numbers"),
        (np.zeros((4, 2), complex), "real numbers"),
        (np.zeros((4, 2), bool), "real numbers"),
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
    assert not out.exists()


def test_archive_of_points(capsys, finished, tmp_path):
    path = tmp_path / "points.npz"
    np.savez(path, a=np.zeros((4, 2)))
    line = mistake(
        capsys, "evaluate", "--run", finished, "--points", path, "--out", "u.npy"
    )
    assert "archive" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "99"], "--seed must be from 0 to 1, got 99."),
        (["--seed", "-1"], "--seed must be from 0 to 1, got -1."),
        (["--lr-index", "2"], "--lr-index must be from 0 to 1, got 2."),
        (["--out", "{folder}"], "--out must be a file"),
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
    assert "compare needs" in mistake(capsys, "compare")
    assert "collect needs" in mistake(capsys, "collect", "--out", tmp_path / "a.json")


def test_settings_of_another_program(capsys, finished, tmp_path):
    other = copy(finished, tmp_path / "other")
    for settings in ({"classes": 10}, {"lr": [1e-3], "depth": 0}):
        (other / "settings.json").write_text(json.dumps(settings))
        assert "are not those of this program" in mistake(
            capsys, "plot", "--run", other
        )
