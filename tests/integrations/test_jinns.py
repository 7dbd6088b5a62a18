"""jinns: a Poisson equation, whose coefficient is found from observations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
from regression import SCHEDULE, STEPS, WIDTH

eqx = pytest.importorskip("equinox")
jinns = pytest.importorskip("jinns")

# jinns silences it when it is imported; pytest starts from its own filters.
pytestmark = pytest.mark.filterwarnings(r"ignore:Using `field\(init=False\)`")


# recipe: solve
class Poisson(jinns.loss.PDEStatio):
    def equation(self, x, u, params):
        laplacian = jinns.loss.laplacian_rev(x, u, params)
        source = 1.5 * jnp.pi**2 * jnp.sin(jnp.pi * x)
        return params.eq_params.coefficient * laplacian + source


def solve(u, params, observations, tx, steps):
    loss = jinns.loss.LossPDEStatio(
        u=u,
        dynamic_loss=Poisson(),
        boundary_condition=jinns.loss.Dirichlet(),
        loss_weights=jinns.loss.LossWeightsPDEStatio(
            dyn_loss=0.01, boundary_loss=1.0, observations=1.0
        ),
        # The network learns from all terms, the coefficient from the equation.
        derivative_keys=jinns.parameters.DerivativeKeysPDEStatio.from_str(
            params, dyn_loss="both"
        ),
    )
    points = jinns.data.CubicMeshPDEStatio(
        key=jax.random.key(0), n=32, nb=2, dim=1, min_pts=(-1.0,), max_pts=(1.0,)
    )
    params, losses, _, _, _, opt_state, *_ = jinns.solve(
        n_iter=steps,
        init_params=params,
        data=points,
        obs_data=observations,
        loss=loss,
        optimizer=tx,
        verbose=False,
    )
    return params, losses, opt_state


# end recipe


def layers(params):
    return [(layer.weight, layer.bias) for layer in params.nn_params.layers]


@pytest.mark.compatible("framework", "jinns")
def test_inverse_problem():
    shapes = eqx.filter_eval_shape(
        eqx.nn.MLP, 1, 1, WIDTH, 2, activation=jnp.tanh, key=jax.random.key(0)
    )
    u, nn_params = jinns.nn.PINN_MLP.create(
        eqx_network=regression.initialise(shapes), eq_type="PDEStatio"
    )
    params = jinns.parameters.Params(
        nn_params=nn_params, eq_params={"coefficient": jnp.array(1.0)}
    )
    x = jnp.linspace(-1, 1, 17)[:, None]
    observations = jinns.data.DataGeneratorObservations(
        key=jax.random.key(0),
        observed_pinn_in=x,
        observed_values=jnp.sin(jnp.pi * x),
    )
    tx = regression.observed(optax.adam(SCHEDULE))
    params, losses, opt_state = solve(u, params, observations, tx, STEPS)
    assert losses[-1] < losses[0] / 100
    np.testing.assert_allclose(params.eq_params.coefficient, 1.5, atol=0.05)
    regression.check_layers(opt_state, layers)
    # The coefficient is no layer: its gradient passes unchanged.
    before, _, after, _ = opt_state
    assert before.updates.eq_params.coefficient != 0
    assert before.updates.eq_params.coefficient == after.updates.eq_params.coefficient
