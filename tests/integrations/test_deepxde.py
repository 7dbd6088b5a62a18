"""DeepXDE on JAX: a Poisson equation, whose coefficient is found from observations.

DeepXDE takes its backend from the environment when it is imported, and writes a choice
into the home directory where there is none: it is imported in a process of its own.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import regression
from regression import WIDTH

import stablegrad_optax as sg


def test_in_a_process_of_its_own():
    result = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"DDE_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


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
TERMS = ("equation", "observations")  # in the order of DeepXDE


def solve_by_terms(optimizer, steps, loss_weights=None):
    model, coefficient = poisson()
    tx = optax.chain(sg.balance_terms(TERMS), optimizer)
    model.compile(
        tx, loss_weights=loss_weights, external_trainable_variables=coefficient
    )

    def losses(params, inputs, targets):
        _, values = model.outputs_losses_train(params, inputs, targets)
        return dict(zip(TERMS, values, strict=True))

    @jax.jit
    def train_step(params, opt_state, inputs, targets):
        values, grads = sg.value_and_grad_of_terms(losses)(params, inputs, targets)
        updates, opt_state = tx.update(grads, opt_state, params, values=values)
        return optax.apply_updates(params, updates), opt_state

    model.train_step = train_step  # the one that model.train calls
    model.train(iterations=steps, display_every=steps)
    return model, coefficient


# end recipe


def layers(tree):
    network, _ = tree
    return [(layer["kernel"], layer["bias"]) for layer in network["params"].values()]


def check_inverse_problem():
    schedule = optax.cosine_decay_schedule(1e-2, 300)
    model, coefficient = solve(regression.observed(optax.adam(schedule)), 300)
    first, last = (np.sum(losses) for losses in model.losshistory.loss_train)
    assert last < first / 100
    np.testing.assert_allclose(coefficient.value, 1.5, atol=0.15)
    regression.check_layers(model.opt_state, layers)
    # The coefficient is no layer: its gradient passes unchanged.
    (old,), (new,) = (
        optax.tree.get(model.opt_state, name)[1] for name in ("before", "after")
    )
    assert old == new != 0


def check_loss_terms():
    model, _ = solve_by_terms(optax.adam(1e-2), 50, loss_weights=[1e4, 1])
    first, last = model.losshistory.loss_train
    assert (last < first / 2).all(), (first, last)
    assert optax.tree.get(model.opt_state, "counts")["equation"] == 50


if __name__ == "__main__":
    import deepxde as dde

    dde.config.set_random_seed(0)
    check_inverse_problem()
    check_loss_terms()
