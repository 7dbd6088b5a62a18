"""What the README shows is run, and its links lead somewhere."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def names_of_blocks():
    names = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
        names.setdefault("first", names["tx"])
    return names


def training_data():
    keys = jax.random.split(jax.random.key(0), 8)
    widths = [2] + 6 * [16]
    hidden = [
        {"kernel": jax.random.normal(key, (n, m)) / np.sqrt(n), "bias": jnp.zeros(m)}
        for key, n, m in zip(keys, widths[:-1], widths[1:], strict=False)
    ]
    params = {
        "hidden": hidden,
        "last": {"kernel": jax.random.normal(keys[6], (16, 1)) / 4},
    }
    x = jax.random.normal(keys[7], (32, 2))
    return params, x, x[:, :1] * x[:, 1:]


def test_the_chain_before_adam_trains():
    names = names_of_blocks()
    assert "optax.chain(sg.stablegrad(), optax.adam(1e-3))" in BLOCKS[0]
    params, x, y = training_data()
    tx, state = names["first"], names["first"].init(params)

    def loss(params):
        return names["loss"](names["predict"](params, x, y), x, y)

    before = loss(params)
    update = jax.jit(tx.update)
    for _ in range(100):
        updates, state = update(jax.grad(loss)(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert loss(params) < before / 2


def test_the_form_for_loss_terms_trains():
    names = {}
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    params, x, _ = training_data()
    state = names["tx"].init(params)
    history = []
    for _ in range(100):
        params, state, values = names["train_step"](params, state, x)
        history.append(values)
    for term in ("residual", "boundary"):
        assert history[-1][term] < history[0][term] / 2


def test_the_sgd_form_trains():
    names = names_of_blocks()
    assert "reference=reference" in BLOCKS[2]
    params, x, y = training_data()
    state = names["tx"].init(params)
    values = []
    for _ in range(100):
        params, state, value = names["train_step"](params, state, x, y)
        values.append(value)
    assert values[-1] < values[0] / 2
