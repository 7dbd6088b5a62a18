"""Base optimizers and scale controls of the examples, on layers that are stacked."""

import functools
import itertools
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.common import optimizers

DEPTH = 3

pytestmark = pytest.mark.usefixtures("quick_compilation")


def stack_axis(path, leaf):
    return 0 if path[0].key == "hidden" else None


def tree(seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "first": jax.random.normal(keys[0], (2, 4)),
        "hidden": {
            "kernel": jax.random.normal(keys[1], (DEPTH, 4, 4)),
            "bias": jax.random.normal(keys[2], (DEPTH, 4)),
        },
        "last": jax.random.normal(keys[3], (4, 1)),
    }


def chain(base, control, stack_axis=stack_axis):
    return optax.chain(
        optimizers.scale_control(control, stack_axis),
        optimizers.base(base, 0.1, stack_axis),
    )


@functools.cache
def updates(base, control, **extra):
    """Those of the second step: the first of adam and lion is only a sign."""
    tx = chain(base, control)

    @jax.jit
    def two_steps(params, first, second):
        state = tx.init(params)
        _, state = tx.update(first, state, params, **extra)
        return tx.update(second, state, params, **extra)[0]

    return two_steps(tree(0), tree(1), tree(2))


def test_controls_differ():
    """But for the two of StableGrad: the reference that they are given differs."""
    found = {
        name.split("-")[0]: np.concatenate(
            [np.ravel(x) for x in jax.tree.leaves(updates("sgd", name))]
        )
        for name in get_args(optimizers.ScaleControl)
    }
    for one, other in itertools.combinations(found.values(), 2):
        assert not np.array_equal(one, other)


def test_stablegrad_takes_the_reference_of_the_step():
    twice = updates("sgd", "stablegrad-prediction", reference=2.0)
    once = updates("sgd", "stablegrad-prediction", reference=1.0)
    chex.assert_trees_all_close(twice, jax.tree.map(lambda x: 2 * x, once), rtol=1e-5)


def layers(stacked):
    """The same tree with a leaf for each layer."""
    hidden = [
        jax.tree.map(lambda x, i=i: x[i], stacked["hidden"]) for i in range(DEPTH)
    ]
    return {**stacked, "hidden": hidden}


@pytest.mark.parametrize(("base", "control"), [("muon", "none"), ("sgd", "agc")])
def test_a_stacked_layer_is_treated_like_layers_by_themselves(base, control):
    """A scan over layers changes nothing: no norm is taken over all of them."""
    together = layers(updates(base, control))
    tx = chain(base, control, lambda path, leaf: None)
    params = layers(tree(0))

    @jax.jit
    def two_steps():
        _, state = tx.update(layers(tree(1)), tx.init(params), params)
        return tx.update(layers(tree(2)), state, params)[0]

    chex.assert_trees_all_close(together, two_steps(), rtol=1e-4, atol=1e-6)


def test_muon_takes_matrices_only_for_matrices():
    """Its updates of them are close to orthogonal, those of the others are adam's."""
    result = updates("muon", "none")
    for kernel in result["hidden"]["kernel"]:
        singular = np.linalg.svd(kernel, compute_uv=False)
        assert singular.max() / singular.min() < 3
    tx = optax.adam(0.1, nesterov=True)  # as in muon
    biases = [tree(seed)["hidden"]["bias"] for seed in range(3)]
    _, state = tx.update(biases[1], tx.init(biases[0]))
    expected, _ = tx.update(biases[2], state)
    np.testing.assert_allclose(result["hidden"]["bias"], expected, rtol=1e-5)


def test_muon_takes_the_kernel_of_a_convolution_for_a_matrix_of_patches():
    tx = optimizers.base("muon", 0.1, lambda path, leaf: None)
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 5))
    flat = {"w": kernel.reshape(18, 5)}
    first_update = jax.jit(lambda grads: tx.update(grads, tx.init(grads), grads)[0])
    updates, expected = first_update({"w": kernel}), first_update(flat)
    np.testing.assert_allclose(
        updates["w"].reshape(18, 5), expected["w"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "muon"])
def test_weights_decay_and_biases_do_not(name):
    params = tree(0)
    zero = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def difference():
        steps = []
        for decay in (0.5, 0.0):
            tx = optimizers.base(name, 0.1, stack_axis, weight_decay=decay)
            steps.append(tx.update(zero, tx.init(params), params)[0])
        return jax.tree.map(lambda a, b: a - b, *steps)

    difference = difference()
    np.testing.assert_allclose(difference["first"], -0.05 * params["first"], rtol=1e-5)
    kernel = params["hidden"]["kernel"]
    np.testing.assert_allclose(
        difference["hidden"]["kernel"], -0.05 * kernel, rtol=1e-5
    )
    assert not np.any(difference["hidden"]["bias"])
