"""Flax NNX: its Optimizer, states by hand, and layers stacked by nnx.vmap."""

import itertools

import jax
import jax.numpy as jnp
import optax
import pytest
import regression
from flax import nnx
from regression import DEPTH, SCHEDULE, SIZES, STEPS, WIDTH, x, y

import stablegrad_optax as sg

OPTIMIZER = pytest.mark.compatible("framework", "Flax NNX `nnx.Optimizer`")
STACKED = pytest.mark.compatible("framework", "Flax `nnx.vmap` / `nnx.scan`")


def create(build, tx):
    """A model of the shapes that `build(rngs)` makes, and its optimizer."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    model = nnx.merge(graphdef, regression.initialise(shapes))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def network(rngs):
    first, *others = [nnx.Linear(n, m, rngs=rngs) for n, m in itertools.pairwise(SIZES)]
    activations = [jnp.tanh] * len(others)
    rest = itertools.chain(*zip(activations, others, strict=True))
    return nnx.Sequential(first, *rest)


def layers(state):
    return [layer_of(state["layers"][i]) for i in sorted(state["layers"])]


def layer_of(state):
    """Weight and bias, be they in Variables or by themselves."""
    return state["kernel"][...], state["bias"][...]


# recipe: nnx.Optimizer
@nnx.jit
def train_step(model, optimizer, x, y):
    def loss_fn(model):
        return jnp.mean((model(x) - y) ** 2)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


# end recipe


@OPTIMIZER
def test_optimizer():
    model, optimizer = create(network, regression.observed(optax.adam(SCHEDULE)))
    losses = [float(train_step(model, optimizer, x, y)) for _ in range(STEPS)]
    assert losses[-1] < losses[0] / 50
    regression.check_layers(optimizer.opt_state, layers)


# recipe: forwarding a reference
def loss(predictions, x, y):
    return jnp.mean((predictions - y) ** 2)


@nnx.jit
def train_step_with_reference(model, optimizer, x, y):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def predict(params, x, y):
        return nnx.merge(graphdef, params, rest)(x)

    value_and_grad = sg.value_and_grad_with_reference(predict, loss)
    value, grads, reference = value_and_grad(params, x, y)
    optimizer.update(model, grads, reference=reference)
    return value


# end recipe


@OPTIMIZER
def test_optimizer_forwards_the_reference():
    model, optimizer = create(network, regression.observed(optax.sgd(SCHEDULE)))
    reference = regression.scale_of_prediction_gradient(model(x))
    train_step_with_reference(model, optimizer, x, y)
    assert reference < 0.1  # far from the constructor's
    regression.check_layers(optimizer.opt_state, layers, reference)


# recipe: loss terms
def losses(model, x, y):
    return {
        "fit": jnp.mean((model(x) - y) ** 2),
        "edge": jnp.mean(model(x[:1]) ** 2),
    }


@nnx.jit
def train_step_by_terms(model, optimizer, x, y):
    values, grads = sg.value_and_grad_of_terms(losses)(model, x, y)
    optimizer.update(model, grads, values=values)
    return values


# end recipe


@OPTIMIZER
def test_optimizer_with_loss_terms():
    model, optimizer = create(network, regression.balanced())
    history = [train_step_by_terms(model, optimizer, x, y) for _ in range(STEPS)]
    regression.check_terms(history, optimizer.opt_state)


# recipe: states by hand
def train_by_hand(model, tx, x, y, steps):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    opt_state = tx.init(params)

    @jax.jit
    def train_step(params, opt_state):
        def loss_fn(params):
            return jnp.mean((nnx.merge(graphdef, params, rest)(x) - y) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for _ in range(steps):
        params, opt_state, loss = train_step(params, opt_state)
        losses.append(float(loss))
    nnx.update(model, params)
    return opt_state, losses


# end recipe


@OPTIMIZER
def test_biases_in_variables_keep_their_layers():
    tx = regression.observed(optax.adam(SCHEDULE))
    model, _ = create(network, tx)
    opt_state, losses = train_by_hand(model, tx, x, y, STEPS)
    assert losses[-1] < losses[0] / 50
    regression.check_layers(opt_state, layers)
    assert jnp.mean((model(x) - y) ** 2) < losses[0] / 50


def test_a_flat_state_has_lost_its_modules():
    """Why the page says to keep a state nested."""
    state = nnx.state(nnx.eval_shape(lambda: network(nnx.Rngs(0))), nnx.Param)
    assert "layers/0" in sg.tabulate(state)
    with pytest.raises(ValueError, match="flat sequence"):
        sg.tabulate(nnx.to_flat_state(state))


# recipe: nnx.vmap and nnx.scan
class DeepNetwork(nnx.Module):
    def __init__(self, depth, width, axis=0, *, rngs):
        self.axis = axis

        @nnx.split_rngs(splits=depth - 1)
        @nnx.vmap(out_axes=nnx.StateAxes({nnx.Param: axis}))
        def create_hidden(rngs):
            return nnx.Linear(width, width, rngs=rngs)

        self.first = nnx.Linear(1, width, rngs=rngs)
        self.hidden = create_hidden(rngs)
        self.last = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        stacked = nnx.StateAxes({nnx.Param: self.axis})

        @nnx.scan(in_axes=(stacked, nnx.Carry), out_axes=nnx.Carry)
        def apply_hidden(layer, x):
            return jnp.tanh(layer(x))

        return self.last(apply_hidden(self.hidden, jnp.tanh(self.first(x))))


def stack_axis_of(model):
    def stack_axis(path, leaf):
        return model.axis if path[0].key == "hidden" else None

    return stack_axis


# end recipe


def unstack(state, axis):
    """The layers of the scanned network, one by one."""
    weights, biases = (jnp.moveaxis(x, axis, 0) for x in layer_of(state["hidden"]))
    slices = zip(weights, biases, strict=True)
    return [layer_of(state["first"]), *slices, layer_of(state["last"])]


@STACKED
@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_layers_are_trained_as_layers_of_their_own(axis):
    def build(rngs):
        return DeepNetwork(DEPTH, WIDTH, axis, rngs=rngs)

    base = optax.adam(SCHEDULE)
    stack_axis = stack_axis_of(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    tx = regression.observed(base, stack_axis=stack_axis)
    model, optimizer = create(build, tx)
    before = unstack(nnx.state(model, nnx.Param), axis)
    for _ in range(10):
        train_step(model, optimizer, x, y)
    expected, _ = regression.train_unstacked(
        optax.chain(sg.stablegrad(), base), before, steps=10
    )
    after = unstack(nnx.state(model, nnx.Param), axis)
    regression.check_same_layers(after, expected)
    regression.check_layers(optimizer.opt_state, lambda state: unstack(state, axis))


# recipe: ensemble
@nnx.split_rngs(splits=3)
@nnx.vmap
def create_ensemble(rngs):
    return nnx.Sequential(
        nnx.Linear(1, WIDTH, rngs=rngs), jnp.tanh, nnx.Linear(WIDTH, 1, rngs=rngs)
    )


@nnx.jit
def train_ensemble(ensemble, optimizer, x, y):
    def loss_fn(ensemble):
        predict = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))
        # A sum over the members, so that each has the gradient of its own loss.
        return jnp.sum(jnp.mean((predict(ensemble, x) - y) ** 2, axis=(1, 2)))

    loss, grads = nnx.value_and_grad(loss_fn)(ensemble)
    optimizer.update(ensemble, grads)
    return loss


# end recipe


@STACKED
def test_members_of_an_ensemble_are_trained_as_if_alone():
    base = optax.sgd(1e-2)
    tx = regression.observed(base, stack_axis=0)
    ensemble, optimizer = create(create_ensemble, tx)
    before = layers(nnx.state(ensemble, nnx.Param))
    for _ in range(10):
        train_ensemble(ensemble, optimizer, x, y)
    after = layers(nnx.state(ensemble, nnx.Param))

    def member(layers, i):
        return jax.tree.map(lambda leaf: leaf[i], layers)

    alone = optax.chain(sg.stablegrad(), base)
    for i in range(3):
        expected, _ = regression.train_unstacked(alone, member(before, i), steps=10)
        regression.check_same_layers(member(after, i), expected)
