"""Double precision beside other dtypes; alone, it is in test_fuzz.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from definitions import assert_close, balanced, random_layer, scale, wide

import stablegrad_optax as sg


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


def test_a_layer_of_several_dtypes():
    grads = {
        "a": random_layer(3, 4, 1e-3, "bfloat16")["kernel"],
        "b": random_layer(3, 4, dtype="float64")["kernel"],
    }
    updates, _ = sg.stablegrad().update(grads, sg.stablegrad().init(None))
    assert [updates[name].dtype for name in "ab"] == [jnp.bfloat16, jnp.float64]
    np.testing.assert_allclose(
        updates["b"], wide(grads["b"]) / scale(grads), rtol=1e-12
    )


def test_a_bias_wider_than_its_weight():
    """One gain, which every element of the bias has in double precision."""
    kernel = random_layer(3, 4, dtype="float32")["kernel"]
    bias = jnp.geomspace(1e-200, 1e200, 7, dtype="float64")
    grads = {"layer": {"kernel": kernel, "bias": bias}}
    updates, _ = jax.jit(sg.stablegrad().update)(grads, sg.stablegrad().init(None))
    gains = wide(updates["layer"]["bias"]) / wide(bias)
    np.testing.assert_allclose(gains, gains[0], rtol=1e-12)
    np.testing.assert_allclose(gains, 1 / scale(kernel), rtol=1e-5)


def test_balanced_terms():
    sizes = {"a": 1e-100, "b": 1.0, "c": 1e100}
    grads = {
        name: {
            "wide": random_layer(3, 4, size, "float64", seed),
            "narrow": random_layer(3, 4, dtype="float32", seed=seed),
        }
        for seed, (name, size) in enumerate(sizes.items())
    }
    values = {"a": 1e-90, "b": 2.0, "c": 1e90}
    tx = sg.balance_terms(tuple(sizes), {"b": 2.0})
    total, state = jax.jit(tx.update)(grads, tx.init(None), values=values)
    importance = {"a": 1.0, "b": 2.0, "c": 1.0}
    ((expected, weights, *_),) = balanced([grads], [values], importance, 0.99, 0.5)
    np.testing.assert_allclose(
        [state.weights[name] for name in sizes], [*weights.values()], rtol=1e-10
    )
    for name, dtype, rtol in (("wide", "float64", 1e-10), ("narrow", "float32", 1e-5)):
        assert {x.dtype for x in total[name].values()} == {jnp.dtype(dtype)}
        assert_close(total[name], expected[name], rtol)
    cosines = sg.term_alignment({k: g["wide"] for k, g in grads.items()})
    np.testing.assert_allclose(jnp.diag(cosines), 1, rtol=1e-12)


def test_terms_of_several_dtypes():
    def losses(w):
        return {"a": jnp.sum(w**2), "b": jnp.sum(w.astype(jnp.float32) ** 3)}

    values, grads = sg.value_and_grad_of_terms(losses)(jnp.array([1.0, 2.0]))
    assert [values[name].dtype for name in "ab"] == [jnp.float64, jnp.float32]
    assert_close(grads, {"a": np.array([2.0, 4.0]), "b": np.array([3.0, 12.0])}, 1e-6)
    tx = sg.balance_terms(("a", "b"))
    total, _ = tx.update(grads, tx.init(None), values=values)
    assert total.dtype == jnp.float64
