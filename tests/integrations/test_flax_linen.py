"""Flax Linen: TrainState as it is and with a reference, and layers under nn.scan."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
from flax.training import train_state
from regression import SCHEDULE, STEPS, x, y

import stablegrad_optax as sg


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in regression.SIZES[1:-1]:
            x = jnp.tanh(nn.Dense(width)(x))
        return nn.Dense(1)(x)


def layers(tree):
    return [(layer["kernel"], layer["bias"]) for layer in tree.values()]


network = Network()


def initialise(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    return regression.initialise(shapes["params"])


def create(state_class, tx):
    params = initialise(network)
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


@pytest.mark.compatible("framework", "Flax Linen `TrainState`")
def test_train_state():
    state = create(train_state.TrainState, regression.observed(optax.adam(SCHEDULE)))
    losses = []
    for _ in range(STEPS):
        state, loss = train_step(state, x, y)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 500
    regression.check_layers(state.opt_state, layers)


# recipe: forwarding a reference
class TrainState(train_state.TrainState):
    def apply_gradients(self, *, grads, reference, **kwargs):
        updates, opt_state = self.tx.update(
            grads, self.opt_state, self.params, reference=reference
        )
        return self.replace(
            step=self.step + 1,
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            **kwargs,
        )


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


@pytest.mark.compatible("framework", "Flax Linen `TrainState`")
def test_train_state_that_forwards_the_reference():
    base = optax.sgd(SCHEDULE, momentum=0.9)
    state = create(TrainState, regression.observed(base))
    losses = []
    for _ in range(STEPS):
        params = state.params
        state, value = train_step_with_reference(state, x, y)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 100
    assert int(state.step) == STEPS
    reference = regression.scale_of_prediction_gradient(predict(params, x, y))
    assert reference < 0.01  # far from the constructor's
    regression.check_layers(state.opt_state, layers, reference)


def test_flax_s_own_train_state_takes_the_reference_for_a_field():
    params = {"kernel": np.ones((2, 2), np.float32)}
    state = train_state.TrainState.create(
        apply_fn=None, params=params, tx=sg.stablegrad()
    )
    with pytest.raises(TypeError, match="reference"):
        state.apply_gradients(grads=params, reference=1.0)


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


def unstack(tree, axis):
    """The layers of the scanned network, one by one."""
    hidden = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, 0), tree["hidden"])
    dense = hidden["Dense_0"]
    slices = zip(dense["kernel"], dense["bias"], strict=True)
    (first,), (last,) = (layers({"": tree[name]}) for name in ("first", "last"))
    return [first, *slices, last]


@pytest.mark.compatible("framework", "Flax `nn.scan`")
@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_layers_are_trained_as_layers_of_their_own(axis):
    deep = DeepNetwork(regression.DEPTH, regression.WIDTH, axis)
    params = initialise(deep)
    base = optax.adam(SCHEDULE)
    tx = regression.observed(base, stack_axis=stack_axis_of(deep))
    state = train_state.TrainState.create(apply_fn=deep.apply, params=params, tx=tx)
    losses = []
    for step in range(STEPS):
        if step == 10:
            expected, _ = regression.train_unstacked(
                optax.chain(sg.stablegrad(), base), unstack(params, axis), step
            )
            regression.check_same_layers(unstack(state.params, axis), expected)
        state, loss = train_step(state, x, y)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 500
    regression.check_layers(state.opt_state, lambda tree: unstack(tree, axis))
