"""optimistix: OptaxMinimiser, which goes on until its tolerances are met."""

import optax
import pytest
import regression
from regression import STEPS, x, y

optx = pytest.importorskip("optimistix")


def loss_fn(layers, data):
    return regression.mean_square_error(regression.predict(layers, *data), *data)


# recipe: minimise
def minimise(loss_fn, params, data, tx, max_steps):
    solver = optx.OptaxMinimiser(tx, rtol=1e-3, atol=1e-4)
    return optx.minimise(
        loss_fn, solver, params, data, max_steps=max_steps, throw=False
    )


# end recipe


@pytest.mark.compatible("framework", "optimistix")
def test_it_trains_until_the_tolerances_are_met():
    layers = regression.initial_layers()
    tx = regression.observed(optax.sgd(optax.cosine_decay_schedule(3e-3, STEPS)))
    solution = minimise(loss_fn, layers, (x, y), tx, STEPS)
    assert solution.result == optx.RESULTS.successful
    assert solution.stats["num_steps"] < STEPS
    before, after = (loss_fn(params, (x, y)) for params in (layers, solution.value))
    assert after < before / 100
    regression.check_layers(solution.state.opt_state, lambda layers: layers)


def test_steps_of_one_size_meet_no_tolerance():
    """Why the page asks for a schedule."""
    tx = regression.observed(optax.sgd(3e-3))
    solution = minimise(loss_fn, regression.initial_layers(), (x, y), tx, STEPS)
    assert solution.result == optx.RESULTS.nonlinear_max_steps_reached
    assert solution.stats["num_steps"] == STEPS
