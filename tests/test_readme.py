"""What the README shows is run."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stablegrad_optax as sg

README = (Path(__file__).parents[1] / "README.md").read_text()
DIFFS = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)


def run_side(diff, sign, **names):
    """The names that the code of a diff defines before ("-") or after ("+")."""
    kept = [line[1:] for line in diff.splitlines() if line[:1] in (" ", sign, "")]
    names |= {"jax": jax, "optax": optax, "sg": sg}
    exec(compile("\n".join(kept), "README.md", "exec"), names)
    return names


def normal(*shape):
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def u(params, point):
    return jnp.tanh(point @ params["kernel"] + params["bias"]) @ params["last"]


def residual(params, points):
    """Of u' = 1 in the first coordinate."""
    slopes = jax.vmap(jax.grad(u, argnums=1), (None, 0))(params, points)
    return jnp.mean((slopes[:, 0] - 1) ** 2)


def boundary(params, points):
    return jnp.mean(u(params, points.at[:, 0].set(0)) ** 2)


@pytest.mark.parametrize("sign", ["-", "+"])
def test_the_step_for_loss_terms_trains(sign):
    names = run_side(DIFFS[0], sign, residual=residual, boundary=boundary)
    params = {"kernel": normal(2, 32), "bias": normal(32), "last": normal(32) / 4}
    points = normal(32, 2)
    before = residual(params, points), boundary(params, points)
    state = names["tx"].init(params)
    for _ in range(200):
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
    names = run_side(DIFFS[1], sign, ResNet=ResNet)
    images = normal(16, 8, 8, 1)
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
    params = {"kernel": normal(2, 8), "bias": normal(8)}
    updates, _ = jax.eval_shape(tx.update, params, tx.init(params), params)
    assert updates == jax.eval_shape(lambda: params)
