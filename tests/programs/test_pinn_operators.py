"""Derivatives in one sweep are those of nested forward mode, for every operator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pinn import operators
from examples.pinn.network import DeepNetwork
from examples.pinn.operators import Sweep, d, dd, laplacian

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPERATORS = {
    "u_x": d(1, 0),
    "u_t": d(0, 1),
    "u_xx": dd(1, 0),
    "laplacian": laplacian(2),
    "u_xt": 0.25 * (dd(1, 1) - dd(1, -1)),
    "mixed": d(1, 0) + 2.0 * dd(0, 1) - 3.0 * d(0.5, 0.5),
}


def network(depth=3, activation=jnp.tanh):
    return DeepNetwork(depth, 8, (-1.0, 0.0), (1.0, 1.0), activation)


def params_and_points(network):
    points = jax.random.uniform(jax.random.key(0), (20, 2))
    params = jax.jit(network.init)(jax.random.key(1), points)
    # Biases are zero at first: a wrong treatment of them would not show.
    return jax.tree.map(lambda x: x + 0.1, params), points


def in_float64(network, params, points):
    """The operators by nested forward mode in double precision."""

    @jax.jit
    def derivatives(params, points):
        def u(point):
            return network.apply(params, point[None])["u"][0]

        return operators.nested_derivatives(u, points, OPERATORS)

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, points))
        return jax.tree.map(np.asarray, derivatives(*wide))


@pytest.mark.parametrize(("depth", "activation"), [(1, jax.nn.gelu), (4, jnp.tanh)])
def test_sweep_is_nested_forward_mode(depth, activation):
    net = network(depth, activation)
    params, points = params_and_points(net)
    swept = jax.jit(lambda p, x: net.apply(p, x, Sweep.of(OPERATORS)))(params, points)
    expected = in_float64(net, params, points)
    assert set(swept) == set(expected)
    for name, value in swept.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(
            value, expected[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name
        )


def test_operators_are_the_derivatives_that_they_name():
    """On a polynomial whose derivatives are known."""

    def u(point):
        x, t = point
        return x**2 * t + 3 * t**2

    points = jnp.array([[2.0, 5.0], [-1.0, 0.5]])
    x, t = points.T
    result = jax.jit(lambda p: operators.nested_derivatives(u, p, OPERATORS))(points)
    expected = {
        "u": x**2 * t + 3 * t**2,
        "u_x": 2 * x * t,
        "u_t": x**2 + 6 * t,
        "u_xx": 2 * t,
        "laplacian": 2 * t + 6,
        "u_xt": 2 * x,
        "mixed": 2 * x * t + 12 - 1.5 * (2 * x * t + x**2 + 6 * t),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6, err_msg=name)


def test_a_laplacian_carries_one_second_order_stream():
    sweep = Sweep.of({"laplacian": laplacian(3)})
    jet = sweep.start(jnp.zeros((5, 3)))
    assert [stream.shape for stream in jet.first] == 3 * [(5, 3)]
    assert [stream.shape for stream in jet.second] == [(5, 3)]


def test_values_alone_carry_no_derivatives():
    jet = operators.NOTHING.start(jnp.zeros((5, 3)))
    assert jet.first == jet.second == ()


@pytest.mark.parametrize("size", [8, 10])
def test_blocks_change_neither_values_nor_gradients(size):
    """Whether or not the last block is a full one."""
    weights = jnp.array([[1.0], [2.0]])
    points = jax.random.uniform(jax.random.key(0), (20, 2))

    @functools.partial(jax.jit, static_argnums=1)
    def values_and_gradient(weights, size):
        def total(weights):
            def f(x):
                return {"a": jnp.sin(x @ weights), "b": x**2}

            result = operators.in_blocks(f, points, size)
            return sum(jnp.sum(jnp.cos(v)) for v in result.values()), result

        return jax.grad(total, has_aux=True)(weights)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5),
        values_and_gradient(weights, size),
        values_and_gradient(weights, None),
    )


def test_hidden_layers_are_one_leaf_whatever_the_depth():
    for depth in (2, 128):
        params = jax.eval_shape(
            network(depth).init, jax.random.key(0), jnp.zeros((1, 2))
        )
        hidden = params["params"]["hidden"]
        assert hidden["kernel"].shape == (depth - 1, 8, 8)
        assert hidden["bias"].shape == (depth - 1, 8)
