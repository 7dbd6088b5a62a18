"""orbax: training goes on from a checkpoint bit for bit, also from one made before."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
import regression
from flax import nnx
from flax.training import train_state
from regression import SCHEDULE, TERMS, WIDTH, x, y

import stablegrad_optax as sg

ocp = pytest.importorskip("orbax.checkpoint")

ORBAX = pytest.mark.compatible("checkpoint", "orbax")
BASE = optax.adam(SCHEDULE)
# Some state of their own, and none.
TX = optax.chain(sg.balance_terms(TERMS), sg.stablegrad(), BASE)


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
    """For a chain that ends with `base`, a checkpoint made with `base` alone."""
    *first, _ = state.opt_state
    older = restore(path, state.replace(opt_state=base.init(state.params)))
    return older.replace(opt_state=(*first, older.opt_state))


# end recipe


# recipe: NNX
def save_nnx(path, model, optimizer):
    save(path, nnx.state((model, optimizer)))


def restore_nnx(path, model, optimizer):
    nnx.update((model, optimizer), restore(path, nnx.state((model, optimizer))))


# end recipe


# recipe: older NNX
def restore_older_nnx(path, model, optimizer, base):
    """For a chain that ends with `base`, a checkpoint made with `base` alone."""
    older = nnx.Optimizer(model, base, wrt=nnx.Param)
    restore_nnx(path, model, older)
    optimizer.step[...] = older.step[...]
    nnx.update(optimizer.opt_state[-1], nnx.state(older.opt_state))


# end recipe


# --- Two ways to hold what is trained, by terms or, with the base, by their sum ---


def losses_of(predict):
    return {
        "fit": jnp.mean((predict(x) - y) ** 2),
        "edge": jnp.mean(predict(x[:1]) ** 2),
    }


def gradient(losses, params, tx):
    """The terms, and what is handed to the optimizer."""
    values, grads = sg.value_and_grad_of_terms(losses)(params)
    if tx is BASE:
        return values, jax.tree.map(jnp.add, *grads.values()), {}
    return values, grads, {"values": values}


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
        self.state, values = self._step(self.state)
        return jax.tree.map(float, values)

    @staticmethod
    @jax.jit
    def _step(state):
        def losses(params):
            return losses_of(lambda x: state.apply_fn(params, x))

        values, grads, extra_args = gradient(losses, state.params, state.tx)
        updates, opt_state = state.tx.update(
            grads, state.opt_state, state.params, **extra_args
        )
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=opt_state), values

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
        return jax.tree.map(float, self._step(self.model, self.optimizer))

    @staticmethod
    @nnx.jit
    def _step(model, optimizer):
        values, grads, extra_args = gradient(losses_of, model, optimizer.tx)
        optimizer.update(model, grads, **extra_args)
        return values

    def save(self, path):
        save_nnx(path, self.model, self.optimizer)

    def restore(self, path):
        restore_nnx(path, self.model, self.optimizer)

    def restore_older(self, path):
        restore_older_nnx(path, self.model, self.optimizer, BASE)


clients = pytest.mark.parametrize("client", [Linen, Nnx])


def train(client, steps=10):
    return [client.step() for _ in range(steps)]


@ORBAX
@clients
def test_training_goes_on_bit_for_bit(client, tmp_path):
    """The memory of balance_terms is part of the state."""
    uninterrupted = client(TX)
    train(uninterrupted)
    uninterrupted.save(tmp_path / "checkpoint")
    history = train(uninterrupted)

    resumed = client(TX)
    resumed.restore(tmp_path / "checkpoint")
    assert train(resumed) == history
    chex.assert_trees_all_equal(resumed.state, uninterrupted.state)


@ORBAX
@clients
def test_a_checkpoint_made_without_it_keeps_the_state_of_the_base(client, tmp_path):
    older = client(BASE)
    train(older)
    older.save(tmp_path / "checkpoint")

    resumed = client(TX)
    with pytest.raises(ValueError, match="match"):
        resumed.restore(tmp_path / "checkpoint")
    resumed.restore_older(tmp_path / "checkpoint")
    # The moments go on, in steps that are no longer those of the base alone.
    counts = [optax.tree.get_all_with_path(c.state, "count") for c in (resumed, older)]
    assert [int(c[0][1][...]) for c in counts] == [10, 10]
    history, without = train(resumed), train(older)
    assert history[0] == without[0]
    assert history[1:] != without[1:]
