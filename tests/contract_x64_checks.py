"""Run by test_optax_contract.py in a process of its own, since x64 is global."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import test_optax_contract as contract

import stablegrad_optax as sg

jax.config.update("jax_enable_x64", True)

assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-11, atol=1e-13)
SGD = contract.BASES["optax.sgd"]


def check_wrapped(wrapped, dtype):
    """As in single precision, but to twelve digits."""
    tx, plain = wrapped.build(SGD), wrapped.plain(SGD)
    grads = contract.gradients(dtype=dtype)
    by_hand = [wrapped.by_hand(g) for g in grads]
    updates = contract.updates_of(
        tx, grads, update=contract.maybe_jit(tx, wrapped, SGD)
    )
    expected = contract.updates_of(
        plain, by_hand, update=contract.maybe_jit(plain, wrapped, SGD)
    )
    assert_close(updates, expected)
    if wrapped.name not in contract.CHANGES_STATE:
        contract.check_types(tx, grads[0])


def check_injected(dtype):
    """Numbers come in double precision, whatever the leaves are."""
    grads = contract.tree(dtype=dtype)
    for reference in (0.5, optax.constant_schedule(0.5)):
        inject = optax.inject_hyperparams(sg.stablegrad, hyperparam_dtype=jnp.float64)
        tx = inject(reference, max_gain=1e30)
        state = tx.init(grads)
        assert state.hyperparams["reference"].dtype == jnp.float64
        updates, _ = jax.jit(tx.update)(grads, state, grads)
        expected = contract.rescaled(grads, 0.5)
        tolerance = 4 * float(jnp.finfo(dtype).eps)
        chex.assert_trees_all_close(updates, expected, rtol=tolerance)
        chex.assert_trees_all_equal_dtypes(updates, grads)


def check_mixed():
    """The widest dtype of the tree is that of one leaf only."""
    grads = contract.tree(dtype=jnp.bfloat16)
    grads["norm"] = {"scale": jnp.ones(4, jnp.float64)}
    tx = optax.chain(optax.inject_hyperparams(sg.stablegrad)(0.5), optax.sgd(0.1))
    contract.check_types(tx, grads)


def check_reference_of_any_dtype(dtype):
    grads = contract.tree(dtype=dtype)
    tx = sg.stablegrad()
    for reference in (0.5, np.float64(0.5), jnp.float64(0.5), jnp.bfloat16(0.5)):
        updates, _ = tx.update(grads, tx.init(grads), reference=reference)
        chex.assert_trees_all_equal_dtypes(updates, grads)


for case, wrapped in contract.WRAPPED.items():
    if contract.lookup(wrapped.name) is None:
        continue
    promotion = "standard" if wrapped.name in contract.PROMOTES else "strict"
    with jax.numpy_dtype_promotion(promotion):
        check_wrapped(wrapped, np.float64)
        if case.endswith(("chain", "both")):
            check_wrapped(wrapped, np.complex128)

with jax.numpy_dtype_promotion("strict"):
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        check_injected(dtype)
        check_reference_of_any_dtype(dtype)
check_mixed()
print("contract checks passed")
