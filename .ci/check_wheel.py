"""What a user of the bare wheel does first: one jitted step of the chain."""

import importlib.metadata
import importlib.resources
import sys

import jax
import jax.numpy as jnp
import optax

import stablegrad_optax as sg

assert "site-packages" in sg.__file__, sg.__file__
assert importlib.resources.files(sg).joinpath("py.typed").is_file()
assert importlib.metadata.version("stablegrad-optax") == sg.__version__
assert "flax" not in sys.modules
assert "matplotlib" not in sys.modules

params = {"layer": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}
tx = optax.chain(sg.stablegrad(), optax.adam(1e-3))
updates, _ = jax.jit(tx.update)(params, tx.init(params))
assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(updates))
print(
    f"stablegrad-optax {sg.__version__} works from its wheel on jax {jax.__version__}"
)
