"""orbax: training goes on from a checkpoint bit for bit, also from one made before."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
import regression
from flax import nnx
from flax.training import train_state
from regression import SCHEDULE, WIDTH, x, y

import stablegrad_optax as sg

ocp = pytest.importorskip("orbax.checkpoint")

BASE = optax.adam(SCHEDULE)
TX = optax.chain(sg.stablegrad(), BASE)


# recipe: save and restore
def save(path, state):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)


def restore(path, like):
    """`like` is a state of the same structure, such as that before the first step."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, like)


# end recipe


# recipe: older checkpoint
def restore_older(path, state, base):
    """For chain(stablegrad(), base), a checkpoint made with `base` alone."""
    like = state.replace(opt_state=base.init(state.params))
    older = restore(path, like)
    return older.replace(opt_state=(sg.StableGradState(), older.opt_state))


# end recipe


# recipe: NNX
def save_nnx(path, model, optimizer):
    save(path, nnx.state((model, optimizer)))


def restore_nnx(path, model, optimizer):
    nnx.update((model, optimizer), restore(path, nnx.state((model, optimizer))))


# end recipe


# recipe: older NNX
def restore_older_nnx(path, model, optimizer, base):
    """For chain(stablegrad(), base), a checkpoint made with `base` alone."""
    older = nnx.Optimizer(model, base, wrt=nnx.Param)
    restore_nnx(path, model, older)
    optimizer.step[...] = older.step[...]
    nnx.update(optimizer.opt_state[1], nnx.state(older.opt_state))


# end recipe


# --- Three ways to hold what is trained -----------------------------------------------


class Pytrees:
    """Dicts and tuples."""

    def __init__(self, tx):
        layers = regression.initial_layers()
        self.tx = tx
        self.state = {"params": layers, "opt_state": tx.init(layers)}

    def step(self):
        self.state, loss = self._step(self.tx, self.state)
        return float(loss)

    @staticmethod
    @functools.partial(jax.jit, static_argnums=0)
    def _step(tx, state):
        params, opt_state = state["params"], state["opt_state"]
        loss, grads, reference = regression.value_and_grad(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params, reference=reference)
        params = optax.apply_updates(params, updates)
        return {"params": params, "opt_state": opt_state}, loss

    def save(self, path):
        save(path, self.state)

    def restore(self, path):
        self.state = restore(path, self.state)

    def restore_older(self, path):
        like = self.state | {"opt_state": BASE.init(self.state["params"])}
        older = restore(path, like)
        opt_state = (sg.StableGradState(), older["opt_state"])
        self.state = older | {"opt_state": opt_state}


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(WIDTH)(x)))


class Linen:
    """A TrainState."""

    network = LinenNetwork()

    def __init__(self, tx):
        shapes = jax.eval_shape(self.network.init, jax.random.key(0), x)
        self.state = train_state.TrainState.create(
            apply_fn=self.network.apply, params=regression.initialise(shapes), tx=tx
        )

    def step(self):
        self.state, loss = self._step(self.state)
        return float(loss)

    @staticmethod
    @jax.jit
    def _step(state):
        def loss_fn(params):
            return jnp.mean((state.apply_fn(params, x) - y) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    def save(self, path):
        save(path, self.state)

    def restore(self, path):
        self.state = restore(path, self.state)

    def restore_older(self, path):
        self.state = restore_older(path, self.state, BASE)


class Nnx:
    """A model and an optimizer that are changed in place."""

    def __init__(self, tx):
        def build(rngs):
            return nnx.Sequential(
                nnx.Linear(1, WIDTH, rngs=rngs),
                jnp.tanh,
                nnx.Linear(WIDTH, 1, rngs=rngs),
            )

        graphdef, shapes = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
        self.model = nnx.merge(graphdef, regression.initialise(shapes))
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)

    @property
    def state(self):
        return nnx.state((self.model, self.optimizer))

    def step(self):
        return float(self._step(self.model, self.optimizer))

    @staticmethod
    @nnx.jit
    def _step(model, optimizer):
        def loss_fn(model):
            return jnp.mean((model(x) - y) ** 2)

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    def save(self, path):
        save_nnx(path, self.model, self.optimizer)

    def restore(self, path):
        restore_nnx(path, self.model, self.optimizer)

    def restore_older(self, path):
        restore_older_nnx(path, self.model, self.optimizer, BASE)


CLIENTS = [Pytrees, Linen, Nnx]


def train(client, steps=20):
    return [client.step() for _ in range(steps)]


@pytest.mark.compatible("checkpoint", "orbax")
@pytest.mark.parametrize("client", CLIENTS)
def test_training_goes_on_bit_for_bit(client, tmp_path):
    uninterrupted = client(TX)
    losses = train(uninterrupted)
    uninterrupted.save(tmp_path / "checkpoint")
    losses += train(uninterrupted)
    assert losses[-1] < losses[0] / 2

    resumed = client(TX)
    resumed.restore(tmp_path / "checkpoint")
    assert train(resumed) == losses[20:]
    chex.assert_trees_all_equal(resumed.state, uninterrupted.state)


@pytest.mark.compatible("checkpoint", "orbax")
@pytest.mark.parametrize("client", CLIENTS)
def test_a_checkpoint_made_without_it_keeps_the_state_of_the_base(client, tmp_path):
    older = client(BASE)
    train(older)
    older.save(tmp_path / "checkpoint")

    resumed = client(TX)
    with pytest.raises(ValueError, match="match"):
        resumed.restore(tmp_path / "checkpoint")
    resumed.restore_older(tmp_path / "checkpoint")
    leaves, expected = jax.tree.leaves(resumed.state), jax.tree.leaves(older.state)
    chex.assert_trees_all_equal(leaves, expected)
    # The moments go on, in steps that are no longer those of the base alone.
    losses, without = train(resumed), train(older)
    assert losses[0] == without[0]
    assert losses[1:] != without[1:]
    assert losses[-1] < losses[0]
