"""DeepXDE on JAX: a Poisson equation, whose coefficient is found from observations.

DeepXDE takes its backend from the environment when it is imported, and writes a choice
into the home directory where there is none: it is imported in a process of its own.
"""

import importlib.util
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
from regression import SCHEDULE, STEPS, WIDTH

if importlib.util.find_spec("deepxde") is None:
    pytest.skip("could not import 'deepxde'", allow_module_level=True)


@pytest.mark.compatible("framework", "DeepXDE (JAX)")
def test_inverse_problem():
    result = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"DDE_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "all as it should be" in result.stdout


def solve(tx, steps):
    import deepxde as dde

    dde.config.set_random_seed(0)
    # recipe: solve
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
    model = dde.Model(data, network)
    model.compile(tx, external_trainable_variables=coefficient)
    model.train(iterations=steps, display_every=steps)
    # end recipe
    return model, coefficient


def layers(tree):
    network, _ = tree
    return [(layer["kernel"], layer["bias"]) for layer in network["params"].values()]


def main():
    model, coefficient = solve(regression.observed(optax.adam(SCHEDULE)), STEPS)
    first, last = (np.sum(losses) for losses in model.losshistory.loss_train)
    assert last < first / 100
    np.testing.assert_allclose(coefficient.value, 1.5, atol=0.15)
    regression.check_layers(model.opt_state, layers)
    # The coefficient is no layer: its gradient passes unchanged.
    before, _, after, _ = model.opt_state
    (old,), (new,) = before.updates[1], after.updates[1]
    assert old == new != 0
    print("all as it should be")


if __name__ == "__main__":
    main()
