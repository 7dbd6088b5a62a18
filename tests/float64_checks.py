"""Run by test_float64.py in a process of its own: x64 cannot be changed in one."""

import jax
import jax.numpy as jnp
import numpy as np

import stablegrad_optax as sg

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")


def check(dtype, exponent, shape):
    rng = np.random.default_rng(0)
    kernel = rng.normal(0.3, 1.0, shape) * 10.0**exponent
    if np.issubdtype(dtype, np.complexfloating):
        kernel = kernel + 1j * rng.normal(0.3, 1.0, shape) * 10.0**exponent
    grads = {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.ones(3, dtype)}
    tx = sg.stablegrad(0.25)
    updates, _ = jax.jit(tx.update)(grads, tx.init(grads))
    for name in grads:
        assert updates[name].dtype == grads[name].dtype, (name, dtype)
    tolerance = 20 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(updates["kernel"]).std(), 0.25, rtol=max(tolerance, 1e-12)
    )
    (scale,) = sg.layer_scales(grads).values()
    is_wide = jnp.finfo(dtype).bits == 64
    assert scale.dtype == (jnp.float64 if is_wide else jnp.float32)


for shape in [(8, 8), (200, 200)]:
    for exponent in (-200, -30, 0, 30, 200):
        check(np.float64, exponent, shape)
        check(np.complex128, exponent, shape)
    for exponent in (-30, 0, 30):
        check(np.float32, exponent, shape)
        check(np.complex64, exponent, shape)

mixed = {"a": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.eye(2, dtype=jnp.float64)}
updates, _ = sg.stablegrad().update({"m": mixed}, sg.StableGradState())
assert updates["m"]["a"].dtype == jnp.bfloat16
assert updates["m"]["b"].dtype == jnp.float64

tx = sg.stablegrad(np.float64(2.0))
updates, _ = tx.update([jnp.eye(3, dtype=jnp.bfloat16)], tx.init(None))
assert updates[0].dtype == jnp.bfloat16


def check_terms():
    rng = np.random.default_rng(3)
    scales = np.array([1e-150, 1.0, 1e150])[:, None, None]
    wide = jnp.asarray(rng.normal(size=(3, 4, 5)) * scales)
    narrow = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    rms = [
        np.sqrt(np.mean(np.concatenate([w.ravel() / s, n.astype(float) / s]) ** 2)) * s
        for w, n, s in zip(
            np.asarray(wide), np.asarray(narrow), scales[:, 0, 0], strict=True
        )
    ]
    got = sg.balance_terms({"wide": wide, "narrow": narrow}, [1.0, 2.0, 0.5])
    expected = np.einsum("k,kij->ij", np.array([1.0, 2.0, 0.5]) / rms, wide)
    assert got["wide"].dtype == jnp.float64
    assert got["narrow"].dtype == jnp.float32
    np.testing.assert_allclose(got["wide"], expected, rtol=1e-12)
    np.testing.assert_allclose(
        sg.term_scales({"wide": wide, "narrow": narrow}), rms, rtol=1e-12
    )
    bounded = sg.balance_terms({"narrow": narrow}, max_ratio=jnp.float32(2.0))
    assert bounded["narrow"].dtype == jnp.float32

    def losses(w):
        return {"a": jnp.sum(w**2), "b": jnp.sum(w.astype(jnp.float32) ** 3)}

    _, grads = sg.value_and_grad_of_terms(losses)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(grads, [[2, 4], [3, 12]])


check_terms()
print("float64 checks passed")
