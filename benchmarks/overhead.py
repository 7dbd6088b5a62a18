"""What StableGrad costs in front of adam, beside what people use instead.

python -m benchmarks.overhead [--rounds 40] [--leaves 1000] [--out FILE.json]

Two tables, on whatever device JAX finds first, each of ratios within this run:
- the time of a jitted, donated update of a ResNet-50 (161 leaves, 25.6 million float32
  parameters), methods in random order in each round, median over rounds;
- the time to trace and compile for trees of many small leaves, which shows how much
  code a transformation emits for each leaf.
"""

import dataclasses
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

    def check(self) -> None:
        super().check()
        if self.leaves < 2:
            raise ValueError(f"leaves must be at least 2, got {self.leaves}")


def methods() -> dict[str, optax.GradientTransformation]:
    """What stands in front of adam; the last two take the gradients of two terms."""
    return {
        "adam alone": optax.identity(),
        "stablegrad": sg.stablegrad(),
        "clip_by_block_rms": optax.clip_by_block_rms(1.0),
        "clip_by_global_norm": optax.clip_by_global_norm(1.0),
        "adaptive_grad_clip": optax.adaptive_grad_clip(0.01),
        "normalize_by_update_norm": optax.normalize_by_update_norm(),
        "scale_by_trust_ratio": optax.scale_by_trust_ratio(),
        SUM: optax.stateless(
            lambda grads, _: jax.tree.map(jax.lax.add, *grads.values())
        ),
        BALANCED: sg.balance_terms(tuple(VALUES)),
    }


SUM, BALANCED = "sum of two terms", "balance_terms of two"
VALUES = {"residual": 1.0, "boundary": 1e-3}
"""Losses of the two terms."""


def resnet50_shapes() -> dict[str, Any]:
    """The parameters of a ResNet-50 with BatchNorm: 161 leaves."""

    def conv(size, n, m):
        return {"kernel": (size, size, n, m)}

    def norm(width):
        return {"scale": (width,), "bias": (width,)}

    tree = {"stem/conv": conv(7, 3, 64), "stem/norm": norm(64)}
    width_in = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name = f"stage{stage}/block{block}"
            layers = [(1, width_in, width), (3, width, width), (1, width, 4 * width)]
            if block == 0:
                layers.append((1, width_in, 4 * width))
            for i, (size, n, m) in enumerate(layers):
                tree[f"{name}/conv{i}"] = conv(size, n, m)
                tree[f"{name}/norm{i}"] = norm(m)
            width_in = 4 * width
    return tree | {"head": {"kernel": (2048, 1000), "bias": (1000,)}}


def dense_shapes(leaves: int) -> dict[str, Any]:
    """Small dense layers, a kernel and a bias each."""
    layer = {"kernel": (32, 32), "bias": (32,)}
    return {f"Dense_{i}": layer for i in range(leaves // 2)}


def random_tree(shapes: Any, scale: float) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(0, scale, shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def compiled_step(
    front: optax.GradientTransformation, params: Any, grads: Any, updates: int = 1
):
    """The steps of `front` before adam, and the seconds to trace and compile them."""
    tx = optax.with_extra_args_support(optax.chain(front, optax.adam(1e-3)))

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

    carry = params, tx.init(params)
    jax.clear_caches()
    jitted = jax.jit(steps, donate_argnums=0)
    tracing, lowered = common.seconds_of(jitted.lower, carry, grads)
    compiling, compiled = common.seconds_of(lowered.compile)
    return compiled, carry, (tracing, compiling)


def gradients(name: str, shapes: Any) -> Any:
    """Those that a method takes."""
    grads = random_tree(shapes, 1e-3)
    if name in (SUM, BALANCED):
        return {"residual": grads, "boundary": jax.tree.map(lambda g: 1e3 * g, grads)}
    return grads


def update_times(rounds: int, updates: int) -> dict[str, list[float]]:
    """Seconds of some updates of a ResNet-50, for each method."""
    params = random_tree(resnet50_shapes(), 0.1)

    def timed(name, front):
        grads = gradients(name, resnet50_shapes())
        step, carry, _ = compiled_step(front, params, grads, updates)
        # Donated: each method has parameters and state of its own.
        carry = jax.tree.map(jnp.copy, carry)
        return common.repeated(lambda carry: step(carry, grads), carry)

    timers = {name: timed(name, front) for name, front in methods().items()}
    return common.in_turns(timers, rounds, "updates of a ResNet-50")


def compile_times(leaves: int) -> dict[str, tuple[float, float]]:
    """Seconds to trace and to compile, for each method."""
    params = random_tree(dense_shapes(leaves), 0.1)
    warm_up = random_tree(dense_shapes(2), 0.1)
    compiled_step(optax.identity(), warm_up, warm_up)
    return {
        name: compiled_step(front, params, gradients(name, dense_shapes(leaves)))[-1]
        for name, front in track(methods().items(), "compiling")
    }


def compile_table(compiling: dict[str, tuple[float, float]], leaves: int) -> Table:
    columns = ("", "trace s", "compile s", "over clip_by_block_rms")
    table = Table(*columns, title=f"trace and compile, {leaves} leaves")
    reference = sum(compiling["clip_by_block_rms"])
    for name, (trace, xla) in compiling.items():
        ratio = (trace + xla) / reference
        table.add_row(name, f"{trace:.1f}", f"{xla:.1f}", f"{ratio:.2f}")
    return table


def main(options: Options) -> None:
    seconds = update_times(options.rounds, options.updates)
    found = {name: {"seconds": times} for name, times in seconds.items()}
    rich.print(common.time_table("update of a ResNet-50, with adam", found))
    compiling = compile_times(options.leaves)
    rich.print(compile_table(compiling, options.leaves))
    numbers = {"update_seconds": seconds, "trace_and_compile_seconds": compiling}
    common.save(options, numbers)


if __name__ == "__main__":
    common.run(Options, main)
