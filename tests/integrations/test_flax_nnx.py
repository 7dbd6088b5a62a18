"""Flax NNX: its Optimizer, states by hand, and layers stacked by nnx.vmap."""

import itertools

import jax
import jax.numpy as jnp
import optax
import pytest
import regression
from flax import nnx
from regression import DEPTH, SIZES, STEPS, WIDTH, x, y

import stablegrad_optax as sg


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


def layer_of(state):
    """Weight and bias, be they in Variables or by themselves."""
    return state["kernel"][...], state["bias"][...]


def layers(model, optimizer=None):
    state = nnx.state(model, nnx.Param)["layers"]
    return [layer_of(state[i]) for i in sorted(state)]


def in_place(train_step):
    """As a step that hands on what it has changed."""

    def step(model, optimizer, x, y):
        return model, optimizer, train_step(model, optimizer, x, y)

    return step


# recipe: nnx.Optimizer
@nnx.jit
def train_step(model, optimizer, x, y):
    def loss_fn(model):
        return jnp.mean((model(x) - y) ** 2)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


# end recipe


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


# recipe: loss terms# recipe: loss terms
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


@pytest.mark.parametrize(
    ("step", "kind"),
    [(train_step_with_reference, "reference"), (train_step_by_terms, "terms")],
)
def test_optimizer_forwards_keywords(step, kind):
    regression.check_training(
        lambda tx: (in_place(step), *create(network, tx)), layers, kind
    )


# recipe: states by hand
def create_train_step(model, tx):
    graphdef, _, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def train_step(params, opt_state, x, y):
        def loss_fn(params):
            return jnp.mean((nnx.merge(graphdef, params, rest)(x) - y) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return train_step


# end recipe


def test_biases_in_variables_keep_their_layers():
    def start(tx):
        model, _ = create(network, tx)
        params = nnx.state(model, nnx.Param)
        return create_train_step(model, tx), params, tx.init(params)

    def layers(params, opt_state):
        return [layer_of(params["layers"][i]) for i in sorted(params["layers"])]

    regression.check_training(start, layers)


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


@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_layers_are_trained_as_layers_of_their_own(axis):
    def build(rngs):
        return DeepNetwork(DEPTH, WIDTH, axis, rngs=rngs)

    def unstack(model, optimizer):
        state = nnx.state(model, nnx.Param)
        weights, biases = (jnp.moveaxis(x, axis, 0) for x in layer_of(state["hidden"]))
        slices = zip(weights, biases, strict=True)
        return [layer_of(state["first"]), *slices, layer_of(state["last"])]

    stack_axis = stack_axis_of(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    regression.check_training(
        lambda tx: (in_place(train_step), *create(build, tx)),
        unstack,
        stack_axis=stack_axis,
    )


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


def test_members_of_an_ensemble_are_trained_as_if_alone():
    tx = optax.chain(sg.stablegrad(stack_axis=0), regression.BASE)
    ensemble, optimizer = create(create_ensemble, tx)
    before = layers(ensemble)
    for _ in range(STEPS):
        train_ensemble(ensemble, optimizer, x, y)
    after = layers(ensemble)
    for i in range(3):
        member = [[(w[i], b[i]) for w, b in layers] for layers in (before, after)]
        regression.check_trained_as(*member)
