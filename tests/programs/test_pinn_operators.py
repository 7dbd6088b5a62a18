"""Derivatives in one sweep are those of nested forward mode, for every operator."""

import chex
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
    "u_xt": d(1, 0) @ d(0, 1),
    "product": (d(1, 0) + 2.0 * d(0, 1)) @ d(1, -1),
    "mixed": d(1, 0) + 2.0 * dd(0, 1) - 3.0 * d(0.5, 0.5),
}
FIELDS = ("u", "v")
OF_TWO_FIELDS = {
    "u_x": d(1, 0)("u"),
    "u_xt": (d(1, 0) @ d(0, 1))("u"),
    "u_laplacian": laplacian(2)("u"),
    "v_t": d(0, 1)("v"),
    "v_xt": (0.25 * (dd(1, 1) - dd(1, -1)))("v"),
    "v_laplacian": laplacian(2)("v"),
    "v_mixed": (d(1, 0) - 2.0 * dd(0, 1))("v"),
}


def network(depth=3, activation=jnp.tanh, fields=("u",)):
    lower, upper = (-1.0, 0.0), (1.0, 1.0)
    return DeepNetwork(depth, 8, lower, upper, activation, fields=fields)


def params_and_points(network):
    points = jax.random.uniform(jax.random.key(0), (20, 2))
    params = jax.jit(network.init)(jax.random.key(1), points)
    # Biases are zero at first: a wrong treatment of them would not show.
    return jax.tree.map(lambda x: x + 0.1, params), points


def in_float64(network, params, points, wanted):
    """The derivatives by nested forward mode in double precision."""

    @jax.jit
    def derivatives(params, points):
        def values(point):
            result = network.apply(params, point[None])
            return jnp.concatenate([result[field] for field in network.fields])

        return operators.nested_derivatives(values, points, wanted, network.fields)

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, points))
        return jax.tree.map(np.asarray, derivatives(*wide))


@pytest.mark.parametrize(
    ("net", "wanted"),
    [
        (network(1, jax.nn.gelu), OPERATORS),
        (network(4), OPERATORS),
        (network(2, fields=FIELDS), OF_TWO_FIELDS),
    ],
    ids=["1 layer", "4 layers", "2 fields"],
)
def test_sweep_is_nested_forward_mode(net, wanted):
    params, points = params_and_points(net)
    sweep = Sweep.of(wanted, net.fields)
    swept = jax.jit(lambda p, x: net.apply(p, x, sweep))(params, points)
    expected = in_float64(net, params, points, wanted)
    assert set(swept) == set(expected) == {*net.fields, *wanted}
    for name, value in swept.items():
        assert value.shape == (20,)
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
        "product": 2 * t + 2 * x - 12,
        "mixed": 2 * x * t + 12 - 1.5 * (2 * x * t + x**2 + 6 * t),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6, err_msg=name)


def test_what_is_carried_and_what_is_trained():
    """One stream for a Laplacian; equal sums once; one leaf for all hidden layers."""
    jet = Sweep.of({"laplacian": laplacian(3)}).start(jnp.zeros((5, 3)))
    assert [len(streams) for streams in jet[1:]] == [3, 1]
    sweep, points = Sweep.of(OF_TWO_FIELDS, FIELDS), jnp.zeros((5, 2))
    for names, numbers in (
        (OF_TWO_FIELDS, [2, 3]),
        ({"v", "v_t", "u_x"}, [2, 0]),
        (FIELDS, [0, 0]),
    ):
        jet = sweep.only(names).start(points)
        assert [len(streams) for streams in jet[1:]] == numbers
    net = network(128, fields=FIELDS)
    params = jax.eval_shape(net.init, jax.random.key(0), points)
    assert params["params"]["hidden"]["kernel"].shape == (127, 8, 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: d(1.0) + d(1, 0), "operators of 1 and of 2 coordinates"),
        (lambda: d(1, 0) @ dd(0, 1), "at most order 2 .* a field of its own"),
        (lambda: Sweep.of({"u_x": d(1, 0)}, FIELDS), "u_x must be a derivative of one"),
        (lambda: Sweep.of({"w_x": d(1, 0)("w")}, FIELDS), "one of the fields u, v"),
    ],
)
def test_errors_say_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize("size", [8, 10])
def test_blocks_change_neither_values_nor_gradients(size):
    """Whether or not the last block is a full one."""
    points = jax.random.uniform(jax.random.key(0), (20, 2))

    def of(size):
        def total(weights):
            def f(x):
                return {"a": jnp.sin(x @ weights), "b": x**2}

            result = operators.in_blocks(f, points, size)
            return sum(jnp.sum(jnp.cos(v)) for v in result.values()), result

        return jax.jit(jax.grad(total, has_aux=True))(jnp.array([[1.0], [2.0]]))

    chex.assert_trees_all_close(of(size), of(None), rtol=1e-5)
