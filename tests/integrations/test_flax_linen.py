"""Flax Linen: TrainState with a reference and loss terms, and layers under nn.scan."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
import regression
from flax.training import train_state
from regression import x

import stablegrad_optax as sg


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in regression.SIZES[1:-1]:
            x = jnp.tanh(nn.Dense(width)(x))
        return nn.Dense(1)(x)


network = Network()


def layers(tree):
    return [(layer["kernel"], layer["bias"]) for layer in tree.values()]


def create(network, state_class, tx):
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    params = regression.initialise(shapes["params"])
    return state_class.create(apply_fn=network.apply, params=params, tx=tx)


# recipe: TrainState
@jax.jit
def train_step(state, x, y):
    def loss_fn(params):
        predictions = state.apply_fn({"params": params}, x)
        return jnp.mean((predictions - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


# end recipe


# recipe: forwarding a reference
class TrainState(train_state.TrainState):
    def apply_gradients(self, *, grads, **extra_args):
        updates, opt_state = self.tx.update(
            grads, self.opt_state, self.params, **extra_args
        )
        params = optax.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state)


def predict(params, x, y):
    return network.apply({"params": params}, x)


def loss(predictions, x, y):
    return jnp.mean((predictions - y) ** 2)


value_and_grad = sg.value_and_grad_with_reference(predict, loss)


@jax.jit
def train_step_with_reference(state, x, y):
    value, grads, reference = value_and_grad(state.params, x, y)
    return state.apply_gradients(grads=grads, reference=reference), value


# end recipe


# recipe: loss terms# recipe: loss terms
def losses(params, x, y):
    predictions = predict(params, x, y)
    edge = predict(params, x[:1], y[:1])
    return {"fit": loss(predictions, x, y), "edge": jnp.mean(edge**2)}


@jax.jit
def train_step_by_terms(state, x, y):
    values, grads = sg.value_and_grad_of_terms(losses)(state.params, x, y)
    return state.apply_gradients(grads=grads, values=values), values


# end recipe


@pytest.mark.parametrize(
    ("step", "kind"),
    [(train_step_with_reference, "reference"), (train_step_by_terms, "terms")],
)
def test_train_state_forwards_keywords(step, kind):
    regression.check_training(
        lambda tx: (step, create(network, TrainState, tx)),
        lambda state: layers(state.params),
        kind,
    )


# recipe: nn.scan
class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(self.width)(x)), None


class DeepNetwork(nn.Module):
    depth: int
    width: int
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(self.width, name="first")(x))
        blocks = nn.scan(
            Block,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=self.depth - 1,
        )
        x, _ = blocks(self.width, name="hidden")(x, None)
        return nn.Dense(1, name="last")(x)


def stack_axis_of(network):
    def stack_axis(path, leaf):
        return network.axis if path[0].key == "hidden" else None

    return stack_axis


# end recipe


@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_layers_are_trained_as_layers_of_their_own(axis):
    def unstack(state):
        (hidden,) = layers(state.params["hidden"])
        slices = zip(*(jnp.moveaxis(leaf, axis, 0) for leaf in hidden), strict=True)
        first, last = layers({name: state.params[name] for name in ("first", "last")})
        return [first, *slices, last]

    deep = DeepNetwork(regression.DEPTH, regression.WIDTH, axis)
    regression.check_training(
        lambda tx: (train_step, create(deep, train_state.TrainState, tx)),
        unstack,
        stack_axis=stack_axis_of(deep),
    )
