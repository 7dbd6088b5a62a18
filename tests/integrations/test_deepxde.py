"""DeepXDE on JAX: a Poisson equation, whose coefficient is found from observations.

DeepXDE takes its backend from the environment when it is imported, and writes a choice
into the home directory where there is none: it is imported in a process of its own.
"""

import importlib.util
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
from regression import SCHEDULE, STEPS, WIDTH

import stablegrad_optax as sg

if importlib.util.find_spec("deepxde") is None:
    pytest.skip("could not import 'deepxde'", allow_module_level=True)


def run(check):
    """Runs a function of this file in a process of its own."""
    result = subprocess.run(
        [sys.executable, __file__, check.__name__],
        env=os.environ | {"DDE_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "all as it should be" in result.stdout


@pytest.mark.compatible("framework", "DeepXDE (JAX)")
def test_inverse_problem():
    run(check_inverse_problem)


@pytest.mark.compatible("framework", "DeepXDE (JAX)")
def test_loss_terms():
    run(check_loss_terms)


# recipe: solve
def poisson():
    interval = dde.geometry.Interval(-1, 1)
    coefficient = dde.Variable(1.0, dtype=np.float32)

    def residual(x, u, unknowns):
        (coefficient,) = unknowns
        u_xx, _ = dde.grad.hessian(u, x)
        return 0.1 * (coefficient * u_xx + 1.5 * jnp.pi**2 * jnp.sin(jnp.pi * x))

    points = np.linspace(-1, 1, 17, dtype=np.float32)[:, None]
    observed = dde.icbc.PointSetBC(points, np.sin(np.pi * points))
    data = dde.data.PDE(interval, residual, observed, num_domain=32)
    network = dde.nn.FNN([1, WIDTH, WIDTH, 1], "tanh", "Glorot normal")
    return dde.Model(data, network), coefficient


def solve(tx, steps):
    model, coefficient = poisson()
    model.compile(tx, external_trainable_variables=coefficient)
    model.train(iterations=steps, display_every=steps)
    return model, coefficient


# end recipe


# recipe: loss terms
def solve_by_terms(tx, steps, loss_weights=None):
    model, coefficient = poisson()
    model.compile(
        tx, loss_weights=loss_weights, external_trainable_variables=coefficient
    )

    def loss_terms(params, inputs, targets):
        _, losses = model.outputs_losses_train(params, inputs, targets)
        return list(losses)

    @jax.jit
    def train_step(params, opt_state, inputs, targets):
        _, grads = sg.value_and_grad_of_terms(loss_terms)(params, inputs, targets)
        updates, opt_state = tx.update(sg.balance_terms(grads), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    model.train_step = train_step  # the one that model.train calls
    model.train(iterations=steps, display_every=steps)
    return model, coefficient


# end recipe


def layers(tree):
    network, _ = tree
    return [(layer["kernel"], layer["bias"]) for layer in network["params"].values()]


def check_inverse_problem():
    model, coefficient = solve(regression.observed(optax.adam(SCHEDULE)), STEPS)
    first, last = (np.sum(losses) for losses in model.losshistory.loss_train)
    assert last < first / 100
    np.testing.assert_allclose(coefficient.value, 1.5, atol=0.15)
    regression.check_layers(model.opt_state, layers)
    # The coefficient is no layer: its gradient passes unchanged.
    before, _, after, _ = model.opt_state
    (old,), (new,) = before.updates[1], after.updates[1]
    assert old == new != 0


def check_loss_terms():
    tx = optax.chain(sg.stablegrad(), optax.adam(1e-2))

    def train(loss_weights):
        """The parameters, and the terms before the first and after the last step."""
        dde.config.set_random_seed(0)
        model, _ = solve_by_terms(tx, 10, loss_weights)
        return model.params, *model.losshistory.loss_train

    params, first, last = train([1, 1])
    assert len(first) == 2
    assert (last < first).all()
    weighted_params, weighted_first, _ = train([1e4, 1])
    np.testing.assert_allclose(weighted_first, [1e4, 1] * first, rtol=1e-5)
    # Adam raises rounding errors where the gradients of the terms nearly cancel.
    chex.assert_trees_all_close(weighted_params, params, rtol=1e-3, atol=5e-4)


if __name__ == "__main__":
    import deepxde as dde

    dde.config.set_random_seed(0)
    globals()[sys.argv[1]]()
    print("all as it should be")
