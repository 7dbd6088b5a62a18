"""What StableGrad costs in front of adam, beside what people use instead.

python -m benchmarks.overhead [--rounds 40] [--leaves 1000] [--out FILE.json]

Two tables, on whatever device JAX finds first, each of ratios within this run:
- the time of a jitted, donated update of a ResNet-50 (161 leaves, 25.6 million float32
  parameters), methods in random order in each round, median over rounds;
- the time to trace and compile for trees of many small leaves, which shows how much
  code a transformation emits for each leaf.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
from rich.progress import track
from rich.table import Table

import stablegrad_optax as sg
from benchmarks import common


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """What StableGrad costs in front of adam, beside what people use instead."""

    rounds: int = 40
    """Timed updates for each method."""
    leaves: int = 1000
    """Leaves of the trees for the compile times."""
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


def resnet50_shapes() -> dict[str, Any]:
    """The parameters of a ResNet-50 with BatchNorm: 161 leaves."""
    tree: dict[str, Any] = {}

    def conv_and_norm(name, size, n, m):
        tree[f"{name}/conv"] = {"kernel": (size, size, n, m)}
        tree[f"{name}/norm"] = {"scale": (m,), "bias": (m,)}

    conv_and_norm("stem", 7, 3, 64)
    width_in = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            layers = [(1, width_in, width), (3, width, width), (1, width, 4 * width)]
            if block == 0:
                layers.append((1, width_in, 4 * width))
            for i, sizes in enumerate(layers):
                conv_and_norm(f"stage{stage}/block{block}/{i}", *sizes)
            width_in = 4 * width
    return tree | {"head": {"kernel": (2048, 1000), "bias": (1000,)}}


def dense_shapes(leaves: int) -> dict[str, Any]:
    """Small dense layers, a kernel and a bias each."""
    layer = {"kernel": (32, 32), "bias": (32,)}
    return {f"Dense_{i}": layer for i in range(max(1, leaves // 2))}


def random_tree(shapes: Any, scale: float) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(0, scale, shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def step_of(name: str, shapes: Any, updates: int = 1):
    """The seconds to trace and to compile the step of a method, and the step."""
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
        if updates == 1:
            return step(carry, grads)

        def next_step(_, carry):
            # Else what depends on the gradients alone would be computed once for all.
            return step(*jax.lax.optimization_barrier((carry, grads)))

        return jax.lax.fori_loop(0, updates, next_step, carry)

    params = random_tree(shapes, 0.1)
    carry = params, tx.init(params)
    jax.clear_caches()
    lower = jax.jit(steps, donate_argnums=0).lower
    tracing, lowered = common.seconds_of(lower, carry, grads)
    compiling, compiled = common.seconds_of(lowered.compile)
    found = {"trace_and_compile": (tracing, compiling)}
    return found, common.repeated(lambda carry: compiled(carry, grads), carry)


def main(options: Options) -> None:
    resnet50, dense = resnet50_shapes(), dense_shapes(options.leaves)
    found = common.compare(
        {name: partial(step_of, name, resnet50, options.updates) for name in METHODS},
        options.rounds,
    )
    common.show("update of a ResNet-50, with adam", found)
    compiling = {
        name: step_of(name, dense)[0]["trace_and_compile"]
        for name in track(METHODS, "compiling")
    }
    columns = ("", "trace s", "compile s", "over clip_by_block_rms")
    table = Table(*columns, title=f"trace and compile, {options.leaves} leaves")
    for name, times in compiling.items():
        ratio = sum(times) / sum(compiling["clip_by_block_rms"])
        table.add_row(name, *(f"{s:.1f}" for s in times), f"{ratio:.2f}")
    rich.print(table)
    seconds = {name: numbers["seconds"] for name, numbers in found.items()}
    numbers = {"update_seconds": seconds, "trace_and_compile_seconds": compiling}
    common.save(options, numbers)


if __name__ == "__main__":
    common.run(Options, main)
