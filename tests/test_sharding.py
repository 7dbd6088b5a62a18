"""Sharded gradients: the same result as on one device."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import stablegrad_optax as sg

WIDTHS = [16, 256]  # below and above the size that is taken in one read


def gradients(width):
    rng = np.random.default_rng(0)
    return {
        f"Dense_{i}": {
            "kernel": jnp.asarray(
                rng.normal(0.2, 10.0**-i, (width, width)), jnp.float32
            ),
            "bias": jnp.asarray(rng.normal(0, 10.0**-i, width), jnp.float32),
        }
        for i in range(3)
    }


def mesh():
    return Mesh(np.array(jax.devices()[:8]), ("model",))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("spec", [P("model", None), P(None, "model")])
def test_jit_with_sharded_arrays(width, spec):
    tx = sg.stablegrad()
    grads = gradients(width)
    expected, _ = jax.jit(tx.update)(grads, tx.init(grads))
    shardings = {
        name: {
            "kernel": NamedSharding(mesh(), spec),
            "bias": NamedSharding(mesh(), P(spec[1])),
        }
        for name in grads
    }
    sharded = jax.device_put(grads, shardings)
    update = jax.jit(lambda g: tx.update(g, tx.init(g))[0])
    updates = update(sharded)
    chex.assert_trees_all_close(jax.device_get(updates), expected, rtol=1e-5)
    for name, layer in updates.items():
        for leaf, value in layer.items():
            assert value.sharding.is_equivalent_to(shardings[name][leaf], value.ndim)
    assert "all-gather" not in update.lower(sharded).compile().as_text()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("statistic", ["std", "rms"])
@pytest.mark.parametrize("axis_name", ["model", ("model",)])
def test_axis_name_under_shard_map(width, statistic, axis_name):
    grads = gradients(width)
    tx = sg.stablegrad(0.5, statistic=statistic)
    expected, _ = jax.jit(tx.update)(grads, tx.init(grads))
    sharded_tx = sg.stablegrad(0.5, statistic=statistic, axis_name=axis_name)
    update = jax.shard_map(
        lambda g: sharded_tx.update(g, sharded_tx.init(g))[0],
        mesh=mesh(),
        in_specs=P("model"),
        out_specs=P("model"),
    )
    chex.assert_trees_all_close(jax.jit(update)(grads), expected, rtol=1e-5)


def test_layer_scales_under_shard_map():
    grads = gradients(16)
    scales = jax.shard_map(
        lambda g: sg.layer_scales(g, axis_name="model"),
        mesh=mesh(),
        in_specs=P("model"),
        out_specs=P(),
    )(grads)
    chex.assert_trees_all_close(scales, sg.layer_scales(grads), rtol=1e-5)
