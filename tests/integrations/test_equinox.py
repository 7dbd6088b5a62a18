"""Equinox: models as they are, loss terms, and layers stacked by filter_vmap."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
import regression
from regression import DEPTH, WIDTH

import stablegrad_optax as sg


# recipe: train step
@eqx.filter_jit
def train_step(tx, model, opt_state, x, y):
    def loss_fn(model):
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    loss, grads = eqx.filter_value_and_grad(loss_fn)(model)
    updates, opt_state = tx.update(grads, opt_state, weights_of(model))
    return eqx.apply_updates(model, updates), opt_state, loss


def weights_of(model):
    return eqx.filter(model, eqx.is_inexact_array)  # for tx.init as well


# end recipe


# recipe: loss terms
@eqx.filter_jit
def train_step_by_terms(tx, model, opt_state, x, y):
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


def create(module, *args, **kwargs):
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = eqx.filter_eval_shape(module, *args, **kwargs, key=key)
    return regression.initialise(shapes)


def start(step, model, tx):
    return functools.partial(step, tx), model, tx.init(weights_of(model))


def layer_of(linear):
    return linear.weight.mT, linear.bias


def unstack(model, opt_state):
    slices = zip(*layer_of(model.hidden), strict=True)
    return [layer_of(model.first), *slices, layer_of(model.last)]


def test_layers_are_trained_as_layers_of_their_own():
    model = create(eqx.nn.MLP, 1, 1, WIDTH, DEPTH, activation=jnp.tanh)
    regression.check_training(
        functools.partial(start, train_step, model),
        lambda model, _: list(map(layer_of, model.layers)),
    )


@pytest.mark.parametrize(
    ("step", "kind", "options"),
    [
        (train_step, "plain", {"stack_axis": stack_axis}),
        (train_step_by_terms, "terms", {}),
    ],
)
def test_stacked_layers_and_loss_terms(step, kind, options):
    model = create(DeepNetwork, DEPTH, WIDTH)
    begin = functools.partial(start, step, model)
    regression.check_training(begin, unstack, kind, **options)
