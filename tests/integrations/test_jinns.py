"""jinns: a Poisson equation, whose coefficient is found from observations."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jinns
import numpy as np
import optax
import pytest
import regression
from regression import WIDTH

import stablegrad_optax as sg

# jinns silences it when it is imported; pytest starts from its own filters.
pytestmark = pytest.mark.filterwarnings(r"ignore:Using `field\(init=False\)`")


# recipe: solve
class Poisson(jinns.loss.PDEStatio):
    def equation(self, x, u, params):
        laplacian = jinns.loss.laplacian_rev(x, u, params)
        source = 1.5 * jnp.pi**2 * jnp.sin(jnp.pi * x)
        return params.eq_params.coefficient * laplacian + source


def of_poisson(u, params):
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
    return loss, points


def solve(loss, points, observations, params, tx, steps):
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


# recipe: loss terms
TERMS = ("dyn_loss", "boundary_loss", "observations")
tx = optax.chain(sg.balance_terms(TERMS), optax.adam(1e-2))


def losses(params, loss, batch):
    _, terms = loss.evaluate(params, batch)
    # Those that the problem has; each may be a tuple, such as one for each equation.
    return {name: sum(jax.tree.leaves(term)) for name, term in terms.items()}


@jax.jit
def train_step(params, opt_state, points, observations, loss):
    points, batch = points.get_batch()
    observations, observed = observations.get_batch()
    batch = jinns.data.append_obs_batch(batch, observed)
    values, grads = sg.value_and_grad_of_terms(losses)(params, loss, batch)
    updates, opt_state = tx.update(grads, opt_state, params, values=values)
    params = optax.apply_updates(params, updates)
    return params, opt_state, points, observations, values


# end recipe


def layers(params):
    return [(layer.weight, layer.bias) for layer in params.nn_params.layers]


def problem():
    """The network, its initial parameters with the coefficient, the observations."""
    shapes = eqx.filter_eval_shape(
        eqx.nn.MLP, 1, 1, WIDTH, 2, activation=jnp.tanh, key=jax.random.key(0)
    )
    u, nn_params = jinns.nn.PINN_MLP.create(
        eqx_network=regression.initialise(shapes), eq_type="PDEStatio"
    )
    # Without a dtype it would be weakly typed, and the first step compiled twice.
    coefficient = jnp.array(1.0, float)
    params = jinns.parameters.Params(
        nn_params=nn_params, eq_params={"coefficient": coefficient}
    )
    x = jnp.linspace(-1, 1, 17)[:, None]
    observations = jinns.data.DataGeneratorObservations(
        key=jax.random.key(0),
        observed_pinn_in=x,
        observed_values=jnp.sin(jnp.pi * x),
    )
    return u, params, observations


def test_inverse_problem():
    u, params, observations = problem()
    loss, points = of_poisson(u, params)
    steps = 300
    tx = regression.observed(optax.adam(optax.cosine_decay_schedule(1e-2, steps)))
    params, losses, opt_state = solve(loss, points, observations, params, tx, steps)
    assert losses[-1] < losses[0] / 100
    np.testing.assert_allclose(params.eq_params.coefficient, 1.5, atol=0.05)
    regression.check_layers(opt_state, layers)
    # The coefficient is no layer: its gradient passes unchanged.
    before, after = (
        optax.tree.get(opt_state, name).eq_params.coefficient
        for name in ("before", "after")
    )
    assert before == after != 0


def test_loss_terms():
    u, start, observations = problem()
    loss, points = of_poisson(u, start)

    def train(loss):
        """The parameters, and the terms of the first and of the last step."""
        carry, history = (start, tx.init(start), points, observations), []
        for _ in range(30):
            *carry, values = train_step(*carry, loss)
            history.append(values)
        return carry[0], history[0], history[-1]

    params, first, last = train(loss)
    assert all(last[name] < first[name] for name in TERMS)
    # The terms are those before jinns multiplies them by its weights.
    weighted = eqx.tree_at(
        lambda loss: loss.loss_weights.dyn_loss, loss, replace_fn=lambda w: 1e4 * w
    )
    chex.assert_trees_all_equal(train(weighted)[0], params)
