"""Haiku: two-level dicts, with the paper's reference, loss terms and layer_stack."""

import jax
import jax.numpy as jnp
import optax
import pytest
import regression
from regression import DEPTH, SCHEDULE, SIZES, STEPS, WIDTH, x, y

import stablegrad_optax as sg

hk = pytest.importorskip("haiku")

HAIKU = pytest.mark.compatible("framework", "Haiku")


def layers(params):
    return [(layer["w"], layer["b"]) for layer in params.values()]


def initialise(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    return regression.initialise(shapes)


def train(train_step, params, tx, steps):
    opt_state, history = tx.init(params), []
    for _ in range(steps):
        params, opt_state, value = train_step(params, opt_state, x, y)
        history.append(value)
    return params, opt_state, history


# recipe: train step
def create_train_step(network, tx):
    def predict(params, x, y):
        return network.apply(params, x)

    def loss(predictions, x, y):
        return jnp.mean((predictions - y) ** 2)

    value_and_grad = sg.value_and_grad_with_reference(predict, loss)

    @jax.jit
    def train_step(params, opt_state, x, y):
        value, grads, reference = value_and_grad(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params, reference=reference)
        return optax.apply_updates(params, updates), opt_state, value

    return train_step


# end recipe


@hk.without_apply_rng
@hk.transform
def network(x):
    return hk.nets.MLP(SIZES[1:], activation=jnp.tanh)(x)


@HAIKU
def test_mlp():
    tx = regression.observed(optax.sgd(SCHEDULE))
    params = initialise(network)
    train_step = create_train_step(network, tx)
    _, opt_state, _ = train(train_step, params, tx, steps=1)
    reference = regression.scale_of_prediction_gradient(network.apply(params, x))
    assert reference < 0.1  # far from the constructor's
    regression.check_layers(opt_state, layers, reference)


@HAIKU
def test_loss_terms():
    tx = regression.balanced()

    @jax.jit
    def train_step(params, opt_state, x, y):
        def losses(params):
            edge = network.apply(params, x[:1])
            fit = network.apply(params, x) - y
            return {"fit": jnp.mean(fit**2), "edge": jnp.mean(edge**2)}

        values, grads = sg.value_and_grad_of_terms(losses)(params)
        updates, opt_state = tx.update(grads, opt_state, params, values=values)
        return optax.apply_updates(params, updates), opt_state, values

    _, opt_state, history = train(train_step, initialise(network), tx, STEPS)
    regression.check_terms(history, opt_state)


# recipe: layer_stack
@hk.without_apply_rng
@hk.transform
def deep_network(x):
    x = jnp.tanh(hk.Linear(WIDTH, name="first")(x))
    stack = hk.experimental.layer_stack(DEPTH - 1, name="hidden")
    x = stack(lambda x: jnp.tanh(hk.Linear(WIDTH)(x)))(x)
    return hk.Linear(1, name="last")(x)


def stack_axis(path, leaf):
    return 0 if path[0].key.startswith("hidden/") else None


# end recipe


def unstack(params):
    first, hidden, last = layers(params)
    return [first, *zip(*hidden, strict=True), last]


@HAIKU
def test_layer_stack_is_trained_as_layers_of_their_own():
    base = optax.sgd(SCHEDULE)
    tx = regression.observed(base, stack_axis=stack_axis)
    params = initialise(deep_network)
    train_step = create_train_step(deep_network, tx)
    trained, opt_state, _ = train(train_step, params, tx, steps=10)
    expected, reference = regression.train_unstacked(
        optax.chain(sg.stablegrad(), base),
        unstack(params),
        steps=10,
        forward_reference=True,
    )
    regression.check_same_layers(unstack(trained), expected)
    regression.check_layers(opt_state, unstack, reference)
