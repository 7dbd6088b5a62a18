"""What a step of examples.pinn does."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablegrad_optax as sg
from examples.pinn import step as training_step
from examples.pinn import train
from examples.pinn.columns import template
from examples.pinn.config import Config
from examples.pinn.objective import Objective
from examples.pinn.problems import PROBLEMS

pytestmark = pytest.mark.usefixtures("quick_compilation")


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
