"""optimistix: OptaxMinimiser, and BFGS after the weights of the terms have settled."""

import jax
import optax
import optimistix as optx
import regression
from regression import TERMS, WIDTH, losses, x, y

import stablegrad_optax as sg

STEPS = 100


def loss_fn(layers, data):
    return regression.mean_square_error(regression.predict(layers, *data), *data)


# recipe: minimise
def minimise(loss_fn, params, data, tx, max_steps):
    solver = optx.OptaxMinimiser(tx, rtol=1e-3, atol=1e-4)
    return optx.minimise(
        loss_fn, solver, params, data, max_steps=max_steps, throw=False
    )


# end recipe


def test_it_trains_until_the_tolerances_are_met():
    layers = regression.initial_layers()
    tx = regression.observed(optax.sgd(optax.cosine_decay_schedule(3e-3, STEPS)))
    solution = minimise(loss_fn, layers, (x, y), tx, STEPS)
    assert solution.result == optx.RESULTS.successful
    assert solution.stats["num_steps"] < STEPS
    before, after = (loss_fn(params, (x, y)) for params in (layers, solution.value))
    assert after < before / 2
    regression.check_layers(solution.state.opt_state, lambda layers: layers)


# recipe: frozen weights
def finish(losses, params, weights, data, max_steps):
    """Minimises the sum of the terms, with the weights that balance_terms ended at."""

    def weighted_sum(params, data):
        values = losses(params, *data)
        return sum(weights[name] * value for name, value in values.items())

    solver = optx.BFGS(rtol=1e-6, atol=1e-6)
    return optx.minimise(
        weighted_sum, solver, params, data, max_steps=max_steps, throw=False
    ).value


# end recipe


def test_a_solver_goes_on_with_the_weights_of_the_last_step():
    tx = optax.chain(sg.balance_terms(TERMS), optax.adam(1e-2))

    @jax.jit
    def train_step(layers, state, x, y):
        values, grads = sg.value_and_grad_of_terms(losses)(layers, x, y)
        updates, state = tx.update(grads, state, layers, values=values)
        return optax.apply_updates(layers, updates), state, values

    layers = regression.initial_layers((1, WIDTH, 1))
    layers, state, _ = regression.train(train_step, layers, tx.init(layers))
    finished = finish(losses, layers, state[0].weights, (x, y), max_steps=100)
    before, after = (losses(params, x, y) for params in (layers, finished))
    assert all(after[name] < before[name] / 10 for name in TERMS), (before, after)
