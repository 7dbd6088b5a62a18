"""What the README shows is run, and what it says was measured is in the records."""

import itertools
import re
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stablegrad_optax as sg

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DIFFS = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)


def side(diff, sign):
    """The code of a diff before ("-") or after ("+")."""
    kept = [line[1:] for line in diff.splitlines() if line[:1] in (" ", sign, "")]
    return compile("\n".join(kept), "README.md", "exec")


def mlp(params, x):
    for layer in params["hidden"]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params["last"]["kernel"]


def initial_params(key, widths):
    *hidden, last = [
        {"kernel": jax.random.normal(k, (n, m)) / np.sqrt(n), "bias": jnp.zeros(m)}
        for k, (n, m) in zip(
            jax.random.split(key, len(widths) - 1),
            itertools.pairwise(widths),
            strict=True,
        )
    ]
    return {"hidden": hidden, "last": last}


def residual(params, points):
    """Of u' = 1 in the first coordinate."""

    def u(point):
        return mlp(params, point)[0]

    return jnp.mean((jax.vmap(jax.grad(u))(points)[:, 0] - 1) ** 2)


def boundary(params, points):
    return jnp.mean(mlp(params, points.at[:, 0].set(0)) ** 2)


@pytest.mark.parametrize("sign", ["-", "+"])
def test_the_step_for_loss_terms_trains(sign):
    names = {"jax": jax, "optax": optax, "sg": sg}
    names |= {"residual": residual, "boundary": boundary}
    exec(side(DIFFS[0], sign), names)
    params = initial_params(jax.random.key(0), [2, 16, 16, 1])
    points = jax.random.normal(jax.random.key(1), (32, 2))
    before = residual(params, points), boundary(params, points)
    state = names["tx"].init(params)
    for _ in range(100):
        params, state = names["train_step"](params, state, points, points)
    after = residual(params, points), boundary(params, points)
    assert after[0] < before[0] / 2
    assert after[1] < before[1] / 2


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(8, (3, 3))(images)
        x = x + nn.Conv(8, (3, 3))(nn.relu(x))
        return nn.Dense(2)(x.mean(axis=(1, 2)))


@pytest.mark.parametrize("sign", ["-", "+"])
def test_the_step_without_batchnorm_trains(sign):
    names = {"jax": jax, "optax": optax, "sg": sg, "ResNet": ResNet}
    exec(side(DIFFS[1], sign), names)
    images = jax.random.normal(jax.random.key(0), (16, 8, 8, 1))
    labels = (images.mean(axis=(1, 2, 3)) > 0).astype(int)
    params = names["network"].init(jax.random.key(1), images)["params"]
    state = names["tx"].init(params)
    values = []
    for _ in range(100):
        params, state, value = names["train_step"](params, state, images, labels)
        values.append(value)
    assert values[-1] < values[0] / 2


def test_the_chain_before_adam_is_a_transformation():
    (chain,) = re.findall(r"`(optax\.chain\(.*?)`", README)
    tx = eval(chain, {"optax": optax, "sg": sg})
    params = initial_params(jax.random.key(0), [2, 8, 1])
    updates, _ = tx.update(params, tx.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
