"""python -m examples.pinn: what it writes, how it ends, how it resumes if killed."""

import re
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import killed, strict

import stablegrad_optax as sg
from examples.common import progress
from examples.common.runs import Recording, Run, RunError
from examples.pinn import __main__ as program
from examples.pinn import demo, train
from examples.pinn import step as training_step
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
SHORT += ["--steps", 6, "--chunk", 4, "--checkpoint-every", 3]
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
    assert "half of the steps of muon done. Not solved: " in printed
    assert printed.count("'residual' is ") == 2
    assert re.search(r"about \d+ s of muon\.\n", printed)
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


# --- What a step does ---


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        ("poisson1d", {"optimizer": "lion", "scale_control": "normalize"}),
        ("poisson", {"scale_control": "stablegrad-prediction", "terms": "weighted"}),
        ("helmholtz", {"optimizer": "sgd", "scale_control": "agc", "points": "fixed"}),
        ("burgers", {"scale_control": "clip", "initialization": "critical"}),
        ("heat", {"group_by": "tree", "statistic": "rms", "activation": "silu"}),
        ("burgers-inverse", {"scale_control": "stablegrad", "order": "after"}),
        ("kovasznay", {"initialization": "variance-preserving", "optimizer": "adam"}),
        ("l-shape", {"schedule": "exponential", "depth": 1}),
    ],
)
def test_every_problem_and_option_trains(problem, options):
    """Traced, not compiled: the shapes of parameters are those of before."""
    options = {"depth": 2, "width": 4} | options
    config = Config(out=Path("unused"), problem=problem, **options)
    config.check()
    train.set_numerics(config)
    objective = Objective(config)
    phase, *_ = phases = training_step.phases_of(objective)
    columns = template(objective, phases, 0)
    column = jax.eval_shape(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), columns)
    )
    new, state, found = jax.eval_shape(
        phase.update, column.params, column.state, 0.1, 0, 0
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(new, column.params, found.gradient)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, column.state)
    names = {condition.name for condition in PROBLEMS[problem].conditions}
    assert set(found.term_grads) == {"residual", *names}


@pytest.mark.parametrize("terms", ["weighted", "balanced"])
def test_one_gradient_is_made_of_named_terms(terms):
    """By weights, or as the library's transformation does it."""
    small = {"depth": 1, "width": 4, "interior_points": 8, "condition_points": 4}
    config = Config(Path("unused"), problem="poisson1d", terms=terms, **small)
    objective = Objective(config)
    # Those of the first step.
    key = jax.random.fold_in(jax.random.key(1000), 0)
    points = jax.jit(objective.sample, static_argnums=1)(key, config.interior_points)
    params = jax.jit(objective.initial_params)(jax.random.key(1))
    phase = training_step.first_order(objective)
    state = phase.start(params, 0.1, 0)
    _, _, found = jax.jit(phase.update)(params, state, 0.1, 0, 0)
    losses, _ = jax.jit(objective.terms)(params, points)
    assert set(losses) == {"residual", "boundary"}
    assert min(losses.values()) > 0
    weight = 100 if terms == "weighted" else 1
    expected = losses["residual"] + weight * losses["boundary"]
    np.testing.assert_allclose(found.loss, expected, rtol=1e-6)

    if terms == "balanced":
        tx = sg.balance_terms(tuple(losses))
        total, state = tx.update(found.term_grads, tx.init(params), values=losses)
        chex.assert_trees_all_close(found.term_weights, state.weights, rtol=1e-3)
    else:
        total = jax.jit(jax.grad(lambda p: objective.loss(p, points)))(params)
    chex.assert_trees_all_close(found.gradient, total, rtol=1e-3, atol=1e-4)


def test_stablegrad_after_the_base_sets_the_scale_of_the_update():
    """Each layer then moves by the learning rate, whatever the base optimizer does."""
    config = Config(
        out=Path("unused"),
        optimizer="adam",
        scale_control="stablegrad",
        schedule="constant",
        order="after",
    )
    weights = {"kernel": jax.random.normal(jax.random.key(0), (2, 5, 5))}
    tree = {"params": {"hidden": weights}}

    @jax.jit
    def first_update(lr):
        tx = training_step.optimizer_of(config, lr)
        return tx.update(tree, tx.init(tree), tree)[0]

    for lr in (1e-3, 1e-1):
        for kernel in first_update(lr)["params"]["hidden"]["kernel"]:
            np.testing.assert_allclose(kernel.std(), lr, rtol=1e-5)


# --- The demo ---


@pytest.mark.smoke
def test_demo_prints_a_table_and_draws_a_figure(tmp_path, capsys, monkeypatch):
    compared = {name: demo.METHODS[name] for name in demo.COMPARED}
    monkeypatch.setattr(demo, "METHODS", compared)
    small = {"depth": 1, "width": 4, "interior_points": 8}
    monkeypatch.setattr(demo, "CASES", {"poisson": small})
    assert main("demo", "--out", tmp_path, "--steps", 2, "--seeds", 2) == 0
    printed = capsys.readouterr().out
    for text in ("poisson, weight 1", "poisson, balanced", "Figure:", "steps/s"):
        assert text in printed
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    runs = strict(tmp_path / "demo.json")["runs"]
    assert [run["settings"]["terms"] for run in runs] == ["weighted", "balanced"]
    assert np.isfinite([run["relative_l2"] for run in runs]).all()


def test_demo_ends_with_the_first_method_that_fails(tmp_path, capsys, monkeypatch):
    """The others do not go on behind the back of whoever reads the message."""
    interrupted = []

    def train(config, console, bars):
        if config.out.name == "poisson, weight 1":
            raise RunError("no space left.")
        with progress.Steps(console, "", 10**6, 0, bars) as steps:
            try:
                for step in range(10**6):
                    steps.show(step, "")
            except KeyboardInterrupt:
                interrupted.append(config.out.name)
                raise

    monkeypatch.setattr(demo, "train", train)
    assert main("demo", "--out", tmp_path) == 2
    assert capsys.readouterr().err == "error: no space left.\n"
    assert len(interrupted) == len(demo.CASES) * len(demo.METHODS) - 1


def test_lbfgs_holds_the_weights_that_make_scales_equal_at_its_start():
    small = {"depth": 1, "width": 4, "lbfgs_points": 8, "condition_points": 4}
    small |= {"steps": 0, "gauss_newton_steps": 0, "lbfgs_steps": 9}
    config = Config(Path("unused"), problem="poisson1d", **small)
    objective = Objective(config)
    (phase,) = training_step.phases_of(objective)
    points = jax.jit(objective.sample, static_argnums=1)(jax.random.key(2000), 8)
    params = jax.jit(objective.initial_params)(jax.random.key(1))
    of_terms = sg.value_and_grad_of_terms(lambda p: objective.terms(p, points)[0])
    _, grads = jax.jit(of_terms)(params)
    state = start = jax.jit(phase.start)(params, 0.1, 0)
    update, losses = jax.jit(phase.update), []
    for step in range(9):
        params, state, found = update(params, state, 0.1, 0, step)
        losses.append(float(found.loss))
    chex.assert_trees_all_equal(state[0], start[0])
    for name, scale in sg.term_scales(grads).items():
        np.testing.assert_allclose(start[0][name] * scale, 1, rtol=1e-5)
    assert losses[-1] < 0.5 * losses[0]


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
