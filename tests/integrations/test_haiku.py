"""Haiku: two-level dicts, with the paper's reference, and layer_stack."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
import regression
from regression import DEPTH, SIZES, WIDTH, x

import stablegrad_optax as sg


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


@pytest.mark.parametrize(
    ("network", "stack_axis"), [(network, None), (deep_network, stack_axis)]
)
def test_layers_are_trained_as_layers_of_their_own(network, stack_axis):
    def start(tx):
        shapes = jax.eval_shape(network.init, jax.random.key(0), x)
        params = regression.initialise(shapes)
        return create_train_step(network, tx), params, tx.init(params)

    def unstack(params, opt_state):
        layers = [(layer["w"], layer["b"]) for layer in params.values()]
        if stack_axis is None:
            return layers
        first, hidden, last = layers
        return [first, *zip(*hidden, strict=True), last]

    regression.check_training(start, unstack, "reference", stack_axis=stack_axis)
