"""What StableGrad costs in front of adam, beside what people use instead.

python -m benchmarks.overhead [--rounds 40] [--leaves 1000] [--out FILE.json]

On whatever device JAX finds first:
- the time of a jitted, donated update of a ResNet-50 (161 leaves, 25.6 million float32
  parameters), methods in random order in each round, median over rounds;
- the time to trace and compile for a tree of many small leaves, which shows how much
  code a transformation emits for each leaf.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import stablegrad_optax as sg
from benchmarks import common
from examples.image_classification import models
from examples.image_classification.config import Config


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """What StableGrad costs in front of adam, beside what people use instead."""

    rounds: int = 40
    """Timed updates for each method."""
    leaves: int = 1000
    """Leaves of the tree for the compile times."""
    updates: int = 1
    """Updates in one call; on an accelerator, enough to hide the time of the call."""


SUM, BALANCED = "sum of two terms", "balance_terms of two"
VALUES = {"residual": 1.0, "boundary": 1e-3}
"""Losses of the two terms."""

METHODS = {
    "adam alone": optax.identity(),
    "stablegrad": sg.stablegrad(),
    "clip_by_block_rms": optax.clip_by_block_rms(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "adaptive_grad_clip": optax.adaptive_grad_clip(0.01),
    "normalize_by_update_norm": optax.normalize_by_update_norm(),
    "scale_by_trust_ratio": optax.scale_by_trust_ratio(),
    SUM: optax.stateless(lambda grads, _: jax.tree.map(jax.lax.add, *grads.values())),
    BALANCED: sg.balance_terms(tuple(VALUES)),
}
"""What stands in front of adam; the last two take the gradients of two terms."""


def resnet50() -> Any:
    """Shapes of the parameters of a ResNet-50 with BatchNorm: 161 leaves."""
    config = Config(out=Path(), model="resnet50", norm="batch")
    network = nnx.eval_shape(
        lambda: models.build(config, nnx.Rngs(0), 1000, 3, small_images=False)
    )
    return nnx.to_pure_dict(nnx.state(network, nnx.Param))


def dense(leaves: int) -> Any:
    """Shapes of small dense layers, a kernel and a bias each."""
    kernel, bias = (jax.ShapeDtypeStruct(n, jnp.float32) for n in ((32, 32), (32,)))
    layer = {"kernel": kernel, "bias": bias}
    return {f"Dense_{i}": layer for i in range(max(1, leaves // 2))}


def random_tree(shapes: Any, scale: float) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, scale, x.shape), x.dtype), shapes
    )


def step_of(name: str, shapes: Any, updates: int = 1) -> tuple[float, common.Step]:
    """The seconds to trace and compile the step of a method, and the step."""
    tx = optax.with_extra_args_support(optax.chain(METHODS[name], optax.adam(1e-3)))
    grads = random_tree(shapes, 1e-3)
    if name in (SUM, BALANCED):
        larger = jax.tree.map(lambda g: 1e3 * g, grads)
        grads = {"residual": grads, "boundary": larger}

    def step(carry, grads):
        params, state = carry
        changes, state = tx.update(grads, state, params, values=VALUES)
        return optax.apply_updates(params, changes), state

    def steps(carry, grads):
        def next_step(_, carry):
            # Else what depends on the gradients alone would be computed once for all.
            return step(*jax.lax.optimization_barrier((carry, grads)))

        if updates == 1:
            return step(carry, grads)
        return jax.lax.fori_loop(0, updates, next_step, carry)

    params = random_tree(shapes, 0.1)
    carry = params, tx.init(params)
    jax.clear_caches()
    jitted = jax.jit(steps, donate_argnums=0)
    seconds, compiled = common.seconds_of(lambda: jitted.lower(carry, grads).compile())
    return seconds, common.repeated(lambda carry: compiled(carry, grads), carry)


def main(options: Options) -> None:
    large, small = resnet50(), dense(options.leaves)

    def make(name):
        _, step = step_of(name, large, options.updates)
        return {"compile_seconds": step_of(name, small)[0]}, step

    found = common.compare(
        {name: partial(make, name) for name in METHODS}, options.rounds
    )
    title = f"update of a ResNet-50, and compilation for {options.leaves} leaves"
    common.show(title, found, compile_seconds=".1f")
    common.save(options, {"methods": found})


if __name__ == "__main__":
    common.run(Options, main)
