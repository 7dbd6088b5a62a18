"""Every choice of an option of python -m examples.pinn, and what a step then does."""

from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from program import strict

import stablegrad_optax as sg
from examples.pinn import __main__ as program
from examples.pinn.config import Config
from examples.pinn.objective import Objective
from examples.pinn.phases import first_order, optimizer_of, phases
from examples.pinn.run import at_a_trivial_solution

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = ["--depth", "1", "--width", "4", "--interior-points", "8"]
TINY += ["--condition-points", "4", "--steps", "2", "--seeds", "1"]


def main(*arguments):
    return program.main([str(argument) for argument in arguments])


def step(**options):
    """Shapes of what a step gives: traced, not compiled."""
    config = Config(out=Path("unused"), **{"depth": 2, "width": 4} | options)
    config.check()
    objective = Objective(config)
    phase = first_order(objective)

    def one():
        points = np.zeros((1, objective.problem.dimension), config.dtype)
        params = objective.network.init(jax.random.key(0), points)
        state = phase.optimizer(0.1).init(params)
        return params, phase.update(params, state, 0.1, 0, 0)

    params, (new, _, found) = jax.eval_shape(one)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, new)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, found.gradient)
    assert found.loss.shape == ()
    names = {condition.name for condition in objective.problem.conditions}
    assert set(found.losses) == {"residual", *names}


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        ("poisson1d", {"optimizer": "lion", "scale_control": "normalize"}),
        (
            "poisson",
            {
                "scale_control": "stablegrad-prediction",
                "points": "fixed",
                "terms": "weighted",
            },
        ),
        ("helmholtz", {"optimizer": "sgd", "scale_control": "agc"}),
        ("burgers", {"scale_control": "clip", "initialization": "critical"}),
        ("heat", {"group_by": "tree", "statistic": "rms", "activation": "silu"}),
        ("poisson1d", {"initialization": "variance-preserving", "order": "after"}),
        ("poisson1d", {"optimizer": "muon", "schedule": "exponential"}),
    ],
)
def test_every_problem_and_option_trains(problem, options):
    step(problem=problem, **options)


@pytest.mark.parametrize("terms", ["weighted", "balanced"])
def test_one_gradient_is_made_of_named_terms(terms):
    """By weights, or as the library's transformation does it."""
    config = Config(
        out=Path("unused"), problem="burgers", depth=2, width=4, terms=terms
    )
    objective = Objective(config)
    # Those of the first step.
    key = jax.random.fold_in(jax.random.key(1000), 0)
    points = objective.sample(key, config.interior_points)
    params = objective.network.init(jax.random.key(1), points["residual"])
    (phase,) = phases(objective)
    state = phase.optimizer(0.1).init(params)
    _, _, found = jax.jit(phase.update)(params, state, 0.1, 0, 0)
    losses = found.losses
    assert set(losses) == {"residual", "initial", "boundary"}
    assert min(losses.values()) > 0
    weight = 100 if terms == "weighted" else 1
    expected = losses["residual"] + weight * (losses["initial"] + losses["boundary"])
    np.testing.assert_allclose(found.loss, expected, rtol=1e-6)

    if terms == "balanced":
        tx = sg.balance_terms(tuple(losses))
        total, state = tx.update(found.term_grads, tx.init(params), values=losses)
        chex.assert_trees_all_close(found.term_weights, state.weights, rtol=1e-3)
    else:
        total = jax.jit(jax.grad(lambda p: objective.weighted(p, points)))(params)
    chex.assert_trees_all_close(found.gradient, total, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ({"residual": [[0.0, 1e-6]], "initial": [[0.3, 1e-7]]}, [(0, 0)]),
        ({"residual": [[1e-30]], "a": [[0.2]], "b": [[1e-31]]}, [(0, 0)]),
        ({"residual": [[0.0]], "initial": [[1e-15]]}, []),  # both are solved
        ({"residual": [[float("nan")]], "initial": [[1.0]]}, []),
        ({"first": [[0.0]], "initial": [[1.0]]}, []),  # equations as terms of their own
        ({}, []),  # L-BFGS records none
    ],
)
def test_a_trivial_solution_is_noticed(losses, found):
    assert at_a_trivial_solution(losses) == found


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
        tx = optimizer_of(config, lr)
        return tx.update(tree, tx.init(tree), tree)[0]

    for lr in (1e-3, 1e-1):
        for kernel in first_update(lr)["params"]["hidden"]["kernel"]:
            np.testing.assert_allclose(kernel.std(), lr, rtol=1e-5)


def test_double_precision(tmp_path):
    out = tmp_path / "run"
    arguments = [*TINY, "--problem", "poisson1d", "--optimizer", "sgd"]
    arguments += ["--dtype", "float64", "--matmul-precision", "high"]
    assert main("train", *arguments, "--out", out) == 0
    assert jax.config.jax_default_matmul_precision == "high"
    (error,) = strict(out / "metrics.json")["relative_l2"][0]
    assert error != float(np.float32(error))
    np.save(tmp_path / "points.npy", np.zeros((3, 1)))
    arguments = ["--points", tmp_path / "points.npy", "--out", tmp_path / "u.npy"]
    assert main("evaluate", "--run", out, *arguments) == 0
    assert np.load(tmp_path / "u.npy").dtype == np.float64
    # Figures of one dimension, and of a network without a stack of layers.
    assert main("plot", "--run", out) == 0
    assert (out / "field.png").stat().st_size > 5000


def test_what_is_wrong_is_drawn_where_there_is_reference_data(tmp_path):
    out = tmp_path / "run"
    assert main("train", *TINY, "--problem", "l-shape", "--out", out) == 0
    assert main("plot", "--run", out) == 0
    assert (out / "difference.png").stat().st_size > 5000
