"""orbax: training goes on from a checkpoint bit for bit, also from one made before."""

import chex
import jax
import optax
import orbax.checkpoint as ocp
import pytest
import regression
import test_flax_linen as linen
import test_flax_nnx as in_place
from flax import nnx
from regression import STEPS, TERMS, x, y

import stablegrad_optax as sg

BASE = optax.adam(1e-2)
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


class Linen:
    """A TrainState."""

    def __init__(self, tx):
        self.state = linen.create(linen.network, linen.TrainState, tx)

    def train(self, *, by_terms=True):
        step = linen.train_step_by_terms if by_terms else linen.train_step
        self.state, history = regression.train(step, self.state)
        return history

    def save(self, path):
        save(path, self.state)

    def restore(self, path):
        self.state = restore(path, self.state)

    def restore_older(self, path):
        self.state = restore_older(path, self.state, BASE)


class InPlace:
    """An NNX model and its optimizer."""

    def __init__(self, tx):
        self.both = in_place.create(in_place.network, tx)

    @property
    def state(self):
        return nnx.state(self.both)

    def train(self, *, by_terms=True):
        step = in_place.train_step_by_terms if by_terms else in_place.train_step
        return [step(*self.both, x, y) for _ in range(STEPS)]

    def save(self, path):
        save_nnx(path, *self.both)

    def restore(self, path):
        restore_nnx(path, *self.both)

    def restore_older(self, path):
        restore_older_nnx(path, *self.both, BASE)


clients = pytest.mark.parametrize("client", [Linen, InPlace])


@clients
def test_training_goes_on_bit_for_bit(client, tmp_path):
    """The memory of balance_terms is part of the state."""
    uninterrupted, resumed = client(TX), client(TX)
    uninterrupted.train()
    uninterrupted.save(tmp_path / "checkpoint")
    resumed.restore(tmp_path / "checkpoint")
    chex.assert_trees_all_equal(uninterrupted.train(), resumed.train())
    chex.assert_trees_all_equal(resumed.state, uninterrupted.state)


@clients
def test_a_checkpoint_made_without_it_keeps_the_state_of_the_base(client, tmp_path):
    older, resumed = client(BASE), client(TX)
    older.train(by_terms=False)
    older.save(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="match"):
        resumed.restore(tmp_path / "checkpoint")
    resumed.restore_older(tmp_path / "checkpoint")
    moments = [optax.tree.get(c.state, "mu") for c in (older, resumed)]
    chex.assert_trees_all_equal(*map(jax.tree.leaves, moments))
    resumed.train()
    counts = [
        value for _, value in optax.tree.get_all_with_path(resumed.state, "count")
    ]
    assert [int(count[...]) for count in counts] == [2 * STEPS]
