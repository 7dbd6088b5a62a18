"""Equinox: models as they are, loss terms, and layers stacked by filter_vmap."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
import regression
from regression import DEPTH, SCHEDULE, STEPS, WIDTH, x, y

import stablegrad_optax as sg

eqx = pytest.importorskip("equinox")

EQUINOX = pytest.mark.compatible("framework", "Equinox")


# recipe: train step
@eqx.filter_jit
def train_step(model, opt_state, tx, x, y):
    def loss_fn(model):
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    loss, grads = eqx.filter_value_and_grad(loss_fn)(model)
    updates, opt_state = tx.update(grads, opt_state, weights_of(model))
    return eqx.apply_updates(model, updates), opt_state, loss


def weights_of(model):
    return eqx.filter(model, eqx.is_inexact_array)


def train(model, tx, x, y, steps, train_step=train_step):
    opt_state = tx.init(weights_of(model))
    history = []
    for _ in range(steps):
        model, opt_state, loss = train_step(model, opt_state, tx, x, y)
        history.append(loss)
    return model, opt_state, history


# end recipe


def layer_of(linear):
    return linear.weight, linear.bias


def create(module, *args, **kwargs):
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = eqx.filter_eval_shape(module, *args, **kwargs, key=key)
    return regression.initialise(shapes)


mlp = functools.partial(create, eqx.nn.MLP, 1, 1, WIDTH, DEPTH, activation=jnp.tanh)


@EQUINOX
def test_model():
    tx = regression.observed(optax.adam(SCHEDULE))
    _, opt_state, losses = train(mlp(), tx, x, y, STEPS)
    assert losses[-1] < losses[0] / 50
    regression.check_layers(
        opt_state, lambda tree: [layer_of(layer) for layer in tree.layers]
    )


# recipe: loss terms
@eqx.filter_jit
def train_step_by_terms(model, opt_state, tx, x, y):
    weights, rest = eqx.partition(model, eqx.is_inexact_array)

    def losses(weights):
        predict = jax.vmap(eqx.combine(weights, rest))
        return {
            "fit": jnp.mean((predict(x) - y) ** 2),
            "edge": jnp.mean(predict(x[:1]) ** 2),
        }

    values, grads = sg.value_and_grad_of_terms(losses)(weights)
    updates, opt_state = tx.update(grads, opt_state, weights, values=values)
    return eqx.apply_updates(model, updates), opt_state, values


# end recipe


@EQUINOX
def test_loss_terms():
    tx = regression.balanced()
    _, opt_state, history = train(mlp(), tx, x, y, STEPS, train_step_by_terms)
    regression.check_terms(history, opt_state)


# recipe: stacked layers
class DeepNetwork(eqx.Module):
    first: eqx.nn.Linear
    hidden: eqx.nn.Linear  # many, stacked along axis 0
    last: eqx.nn.Linear

    def __init__(self, depth, width, key):
        keys = jax.random.split(key, depth + 1)

        @eqx.filter_vmap
        def create_hidden(key):
            return eqx.nn.Linear(width, width, key=key)

        self.first = eqx.nn.Linear(1, width, key=keys[0])
        self.hidden = create_hidden(keys[1:-1])
        self.last = eqx.nn.Linear(width, 1, key=keys[-1])

    def __call__(self, x):
        def block(x, layer):
            return jnp.tanh(layer(x)), None

        x, _ = jax.lax.scan(block, jnp.tanh(self.first(x)), self.hidden)
        return self.last(x)


def stack_axis(path, leaf):
    return 0 if path[0].name == "hidden" else None


# end recipe


def unstack(model):
    slices = zip(*layer_of(model.hidden), strict=True)
    pairs = [layer_of(model.first), *slices, layer_of(model.last)]
    return [(weight.T, bias) for weight, bias in pairs]


@EQUINOX
def test_stacked_layers_are_trained_as_layers_of_their_own():
    deep = create(DeepNetwork, DEPTH, WIDTH)
    base = optax.adam(SCHEDULE)
    tx = regression.observed(base, stack_axis=stack_axis)
    trained, opt_state, _ = train(deep, tx, x, y, steps=10)
    expected, _ = regression.train_unstacked(
        optax.chain(sg.stablegrad(), base), unstack(deep), steps=10
    )
    regression.check_same_layers(unstack(trained), expected)
    regression.check_layers(opt_state, unstack)
