"""The gradients of the terms of a loss, their scales, and the angles between them."""

import re
import sys

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from definitions import assert_close, elements, random_layer, scale

import stablegrad_optax as sg

# --- The gradients of the terms ---


def shared(params, x):
    """Terms on the same points, and one on parameters alone."""
    for layer in params:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
    return {"mean": jnp.mean(x), "square": 1e3 * jnp.mean(x**2), "decay": squares}


def apart(params, x):
    """Terms on points of their own, one of them of a derivative, as in a PINN."""

    def u(x):
        for layer in params:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return jnp.sum(x, axis=-1)

    return {
        "residual": jnp.mean(jax.vmap(jax.grad(u))(x) ** 2),
        "boundary": jnp.mean((u(2 * x) - 1) ** 2),
    }


def nested(params, x):
    """Transformations inside: a loop, a jitted function, a checkpoint, a rule."""

    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))

    @jax.checkpoint
    def hidden(x):
        return jax.jit(jnp.sin)(cube(jax.nn.relu(x)))

    kernel = params[0]["kernel"]
    y, _ = jax.lax.scan(lambda y, _: (hidden(y @ kernel), None), x, length=3)
    return [jnp.sum(y), (jnp.sum(jnp.log1p(y)),)]


def partly_constant(params, x):
    """One term that does not depend on params, and params that no term depends on."""
    return {"data": jnp.mean(x**2), "weights": jnp.sum(params[0]["kernel"] ** 2)}


PARAMS = [random_layer(4, 4, 0.5, seed=i) for i in range(3)]
POINTS = random_layer(5, 4, seed=9)["kernel"]


@pytest.mark.parametrize("losses", [shared, apart, nested, partly_constant])
def test_values_and_gradients_are_those_of_jacrev(losses):
    with jax.numpy_dtype_promotion("strict"):
        f = jax.jit(sg.value_and_grad_of_terms(losses))
        values, grads = f(PARAMS, x=POINTS)
    expected = jax.jit(losses)(PARAMS, POINTS)
    chex.assert_trees_all_close(values, expected, rtol=1e-6)
    assert_close(grads, jax.jit(jax.jacrev(losses))(PARAMS, POINTS), 1e-6)


def test_a_complex_parameter_has_the_gradient_of_jax_grad():
    def loss(z):
        return jnp.sum(jnp.abs(z) ** 2 * jnp.real(z))

    z = jnp.array([1 + 2j, -1j])
    _, grads = sg.value_and_grad_of_terms(lambda z: [loss(z)])(z)
    np.testing.assert_allclose(grads[0], jax.grad(loss)(z), rtol=1e-6)


def test_auxiliary_data_and_a_state_that_is_no_array():
    def losses(x):
        return (jnp.sum(x), [jnp.sum(x**2)]), {"batch_stats": 2 * x, "count": 3}

    x = jnp.array([1.0, 2.0])
    (values, aux), grads = sg.value_and_grad_of_terms(losses, has_aux=True)(x)
    assert jax.tree.map(float, values) == (3.0, [5.0])
    np.testing.assert_array_equal(aux["batch_stats"], 2 * x)
    assert aux["count"] == 3
    chex.assert_trees_all_equal(grads, (jnp.ones(2), [2 * x]))
    with pytest.raises(ValueError, match="has_aux=True"):
        sg.value_and_grad_of_terms(losses)(x)


def products(f):
    """How many matrix products a program has, before it is compiled."""
    text = jax.jit(f).lower(PARAMS, POINTS).as_text()
    return len(re.findall(r"dot_general", text))


def test_terms_on_points_of_their_own_cost_what_their_sum_costs():
    total = jax.grad(lambda *args: sum(apart(*args).values()))
    assert products(sg.value_and_grad_of_terms(apart)) == products(total)


def test_terms_on_the_same_points_share_their_forward_pass():
    forward = products(shared)
    one = products(jax.grad(lambda *args: shared(*args)["mean"]))
    terms = products(sg.value_and_grad_of_terms(shared))
    assert terms == forward + 2 * (one - forward)  # and none for the third term


def test_tracing_takes_time_that_grows_with_the_number_of_terms():
    calls = []

    def work(number):
        def losses(x):
            calls.append(number)
            for _ in range(5):
                x = jnp.sin(x)
            return {str(k): jnp.sum(jnp.cos(k * x)) for k in range(number)}

        count = 0

        def profile(frame, event, arg):
            nonlocal count
            count += event == "call"

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            jaxpr = jax.make_jaxpr(sg.value_and_grad_of_terms(losses))(jnp.ones(3))
        finally:
            sys.setprofile(before)
        return count, len(jaxpr.eqns)

    work(2)
    few, many = work(8), work(32)
    assert calls == [2, 8, 32]
    assert many[0] < 6 * few[0]
    assert many[1] <= 4 * few[1]


MLP = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("losses", "params", "error", "message"),
    [
        (lambda x: {"a": {"b": x}}, jnp.ones(2), ValueError, r"'a/b'.*float32\[2\]"),
        (lambda x: {"n": jnp.int32(1)}, 1.0, ValueError, r"'n'.*int32\[\]"),
        (lambda x: {"z": x * 1j}, 1.0, ValueError, r"'z'.*complex64\[\]"),
        (lambda x: {"s": "text"}, 1.0, ValueError, "'s'.*got 'text'"),
        (lambda x: {}, 1.0, ValueError, "one term or more"),
        (lambda p: p["w"], {"w": 1.0, "n": 3}, TypeError, "got int32 in leaf 'n'"),
        (lambda p: 1.0, jax.random.key(0), TypeError, r"got key<fry> in leaf '\.'"),
        (lambda p: 1.0, None, TypeError, "params must hold arrays, got None"),
        (lambda p: 1.0, {"f": jnp.tanh}, TypeError, "in leaf 'f'"),
        (lambda p: 1.0, MLP, TypeError, "in leaf 'activation'"),
    ],
)
def test_what_cannot_be_differentiated_is_named(losses, params, error, message):
    with pytest.raises(error, match=message):
        sg.value_and_grad_of_terms(losses)(params)


# --- Scales and angles ---


def random_grads(exponents=(0, -3, 4), dtype="float32"):
    """A gradient for each of the terms a, b, c, ..., of several scales."""
    return {
        name: [random_layer(5, 7, 0.9 * 10.0**e, dtype, seed) for seed in (i, i + 9)]
        for i, (name, e) in enumerate(zip("abcd", exponents, strict=False))
    }


@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [
        ("float32", (0, -18, 15)),
        ("bfloat16", (0, -18, 15)),
        ("complex64", (0, -18, 15)),
        ("float16", (0, -7, 4)),
    ],
)
def test_scales_and_angles_over_the_whole_range(dtype, exponents):
    grads = random_grads(exponents, dtype)
    # The last term is the first one, turned round.
    grads["d"] = jax.tree.map(lambda x: -x, grads["a"])
    with jax.numpy_dtype_promotion("strict"):
        scales, cosines = jax.jit(lambda g: (sg.term_scales(g), sg.term_alignment(g)))(
            grads
        )
    expected = {name: scale(term, "rms") for name, term in grads.items()}
    chex.assert_trees_all_close(scales, expected, rtol=1e-3)
    terms = np.stack([elements(term) for term in grads.values()])
    terms /= np.linalg.norm(terms, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, np.real(terms @ terms.conj().T), atol=2e-3)
    np.testing.assert_allclose(cosines[0, 3], -1, atol=1e-6)
    assert np.abs(cosines).max() <= 1
    assert cosines.dtype == scales["a"].dtype == jnp.float32


def test_terms_of_zeros_known_while_compiling_or_not():
    ones, zeros = jnp.ones(120_000), jnp.zeros(120_000)

    def measured(factor):
        grads = [ones, factor * zeros, 2 * ones]
        return sg.term_scales(grads), sg.term_alignment(grads)

    corners = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1]])
    for scales, cosines in (jax.jit(measured)(1.0), jax.jit(lambda: measured(1.0))()):
        np.testing.assert_allclose(scales, [1, 0, 2], rtol=1e-3)
        np.testing.assert_allclose(cosines, corners, atol=1e-3)


def test_terms_in_lists_and_leaves_of_other_kinds():
    others = {
        "none": None,
        "masked": optax.MaskedNode(),
        "empty": jnp.zeros((0, 3)),
        "counts": np.array([1, 2]),
        "float0": np.zeros(3, jax.dtypes.float0),
    }
    terms = tuple({"w": jnp.full(3, c)} | others for c in (2.0, -3.0))
    chex.assert_trees_all_close(sg.term_scales(terms), (2.0, 3.0))
    np.testing.assert_allclose(sg.term_alignment(terms), [[1, -1], [-1, 1]], atol=1e-6)
    # What is not finite stays in its term.
    scales = sg.term_scales([*terms, {"w": jnp.array([1.0, np.nan])}])
    np.testing.assert_allclose(scales, [2, 3, np.nan])


@pytest.mark.parametrize("function", [sg.term_scales, sg.term_alignment])
@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"counts": np.array([1, 2])}, "no floating-point elements"),
        ({}, "no floating-point elements"),
        ({"params": 1.0, "_overwrite_with_gradient": {"s": 1.0}}, "gradient/s'"),
    ],
)
def test_what_has_no_scale(function, term, message):
    with pytest.raises(ValueError, match=message):
        function({"a": jnp.ones(2), "b": term})
