"""The reference scale, and the value and gradient that come with it.

The scale itself is tested beside the other scales, in test_scale.py.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from definitions import assert_close, random_layer, scale

import stablegrad_optax as sg


def predict(params, x, *unused):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def fields(params, x, y):
    """A tree of predictions; an integer one, as a metric needs it."""
    u = predict(params, x)
    return {"u": u[:, :1], "v": (u[:, 1:],), "class": jnp.argmax(u, axis=1)}


def residual(params, x, y):
    """It holds derivatives of the network, as in a PINN."""
    return jax.vmap(jax.jacfwd(lambda x: jnp.sum(predict(params, x))))(x) * y[:, :1]


def in_half_precision(params, x, y):
    return predict(params, x).astype(jnp.bfloat16)


def wave(params, x, y):
    return jnp.exp(1j * predict(params, x))


def loss(predictions, x, y):
    del x
    floats = [p for p in jax.tree.leaves(predictions) if p.dtype != jnp.int32]
    return sum(jnp.mean(jnp.abs(p - y[0, 0]).astype(jnp.float32) ** 2) for p in floats)


PARAMS = [random_layer(4, 4, 0.5, seed=i) for i in range(3)]
BATCH = random_layer(5, 4, seed=7)["kernel"], random_layer(5, 4, seed=8)["kernel"]


@pytest.mark.parametrize(
    "predict", [predict, fields, residual, in_half_precision, wave]
)
def test_value_gradient_and_reference(predict):
    f = jax.jit(sg.value_and_grad_with_reference(predict, loss))
    value, grads, reference = f(PARAMS, *BATCH)

    @jax.jit
    def expected(params, *batch):
        composed = jax.value_and_grad(lambda p: loss(predict(p, *batch), *batch))
        of_predictions = jax.grad(lambda p: loss(p, *batch), allow_int=True)
        found = jax.tree.leaves(of_predictions(predict(params, *batch)))
        return *composed(params), [g for g in found if g.dtype != jax.dtypes.float0]

    expected_value, expected_grads, prediction_grads = expected(PARAMS, *BATCH)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    chex.assert_trees_all_equal_dtypes(grads, PARAMS)
    assert_close(grads, expected_grads, 1e-5)
    rtol = 1e-2 if predict is in_half_precision else 1e-4
    np.testing.assert_allclose(reference, scale(prediction_grads), rtol=rtol)
    assert reference.dtype == jnp.float32


def test_complex_params_have_the_gradient_of_jax_grad():
    params = {"w": random_layer(4, 2, dtype="complex64")["kernel"]}

    def psi(params, x):
        return jnp.sin(x @ params["w"])

    def loss(psi, x):
        return jnp.mean(jnp.abs(psi - 1) ** 2)

    x = BATCH[0].astype(jnp.complex64)
    value, grads, _ = jax.jit(sg.value_and_grad_with_reference(psi, loss))(params, x)
    expected = jax.jit(jax.value_and_grad(lambda p: loss(psi(p, x), x)))(params)
    assert_close((value, grads), expected)


def test_arguments_by_name_reach_both_and_aux_comes_back():
    def with_aux(params, x, *, y, weight):
        predictions = weight * predict(params, x)
        return predictions, {"largest": jnp.max(predictions), "count": len(x)}

    def weighted(predictions, x, *, y, weight):
        return weight * jnp.mean((predictions - y) ** 2)

    x, y = BATCH
    f = sg.value_and_grad_with_reference(with_aux, weighted, has_aux=True)
    (value, aux), _, reference = f(PARAMS, x, y=y, weight=3.0)
    predictions = 3 * predict(PARAMS, x)
    np.testing.assert_allclose(value, 3 * jnp.mean((predictions - y) ** 2), rtol=1e-5)
    np.testing.assert_allclose(aux["largest"], jnp.max(predictions), rtol=1e-6)
    assert aux["count"] == 5
    np.testing.assert_allclose(reference, scale(6 * (predictions - y) / y.size), 1e-5)


def test_one_forward_and_one_backward_pass():
    calls = []

    def counted(name, f):
        def call(*args):
            calls.append(name)
            return f(*args)

        return call

    f = sg.value_and_grad_with_reference(
        counted("predict", predict), counted("loss", loss)
    )
    text = str(jax.make_jaxpr(f)(PARAMS, *BATCH))
    assert calls == ["predict", "loss"]
    # Three layers: forward, to the weights, and to the input of all but the first.
    assert text.count(" dot_general") == 3 + 3 + 2
    assert text.count(" tanh ") == 2


def test_vmap_over_an_ensemble_and_over_targets():
    members = [PARAMS, jax.tree.map(lambda x: 0.5 * x, PARAMS)]
    ensemble = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    x, y = BATCH
    targets = jnp.stack([y, -y])
    f = sg.value_and_grad_with_reference(predict, loss)
    mapped = jax.jit(jax.vmap(f, in_axes=(0, None, 0)))(ensemble, x, targets)
    each = [jax.jit(f)(p, x, y) for p, y in zip(members, targets, strict=True)]
    assert_close(mapped, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))


@pytest.mark.parametrize(
    "bystander", [jnp.arange(5), np.zeros(5, jax.dtypes.float0), jnp.zeros(0), None]
)
def test_what_has_no_gradient_is_left_out(bystander):
    np.testing.assert_allclose(sg.reference_scale([bystander, jnp.array([1.0, 3])]), 1)
    with pytest.raises(ValueError, match="no floating-point elements"):
        sg.reference_scale([bystander])


def test_predictions_without_a_gradient():
    f = sg.value_and_grad_with_reference(lambda params, x, y: {}, lambda p, x, y: 1.0)
    with pytest.raises(ValueError, match="no floating-point elements"):
        f(PARAMS, *BATCH)


def test_what_cannot_be_differentiated_is_named():
    """By the checks of test_terms.py."""

    def mean(predictions, x, y):
        return jnp.mean(predictions, axis=0)

    f = jax.jit(sg.value_and_grad_with_reference(predict, mean))
    with pytest.raises(ValueError, match=r"value of loss must .*, got float32\[4\]"):
        f(PARAMS, *BATCH)
    f = sg.value_and_grad_with_reference(predict, loss)
    with pytest.raises(TypeError, match="leaf 'n'"):
        f({"n": 3}, *BATCH)
