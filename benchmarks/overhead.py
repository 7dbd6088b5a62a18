"""What StableGrad costs in front of adam, beside what people use instead.

python -m benchmarks.overhead [--rounds 40] [--leaves 1000] [--out FILE.json]

Two tables, each a ratio within this run:
- time of a jitted, donated update on the tree of a ResNet-50 (161 leaves, 25.6 million
  float32 parameters), methods in random order in each round, median over rounds;
- trace and compile time on trees of many small leaves, where a transform that emits
  much code for each leaf shows.
"""

import dataclasses
import json
import platform
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

import stablegrad_optax as sg


@dataclasses.dataclass(frozen=True)
class Options:
    """What StableGrad costs in front of adam, beside what people use instead."""

    rounds: int = 40
    """Timed updates for each method."""
    leaves: int = 1000
    """Leaves of the trees for the compile times."""
    out: Path | None = None
    """JSON file for the results; none by default."""


def methods() -> dict[str, optax.GradientTransformation]:
    """What stands in front of adam."""
    return {
        "adam alone": optax.identity(),
        "stablegrad": sg.stablegrad(),
        "clip_by_block_rms": optax.clip_by_block_rms(1.0),
        "clip_by_global_norm": optax.clip_by_global_norm(1.0),
        "adaptive_grad_clip": optax.adaptive_grad_clip(0.01),
        "normalize_by_update_norm": optax.normalize_by_update_norm(),
        "scale_by_trust_ratio": optax.scale_by_trust_ratio(),
    }


def resnet50_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
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


def dense_shapes(leaves: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Small dense layers, a kernel and a bias each."""
    layer: dict[str, tuple[int, ...]] = {"kernel": (32, 32), "bias": (32,)}
    return {f"Dense_{i}": layer for i in range(leaves // 2)}


def random_tree(shapes: Any, scale: float) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(0, scale, shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def compiled_step(front: optax.GradientTransformation, params: Any):
    """The compiled step of `front` before adam, and the seconds it took to get it."""
    tx = optax.chain(front, optax.adam(1e-3))

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return compiled, state, (traced - start, time.perf_counter() - traced)


def update_times(rounds: int) -> dict[str, list[float]]:
    """Seconds of each update, for each method."""
    params = random_tree(resnet50_shapes(), 0.1)
    grads = random_tree(resnet50_shapes(), 1e-3)
    runs: dict[str, tuple[Callable[..., Any], Any]] = {}
    for name, front in methods().items():
        step, state, _ = compiled_step(front, params)
        # Donated: each method has its own parameters and state.
        runs[name] = step, step(jax.tree.map(jnp.copy, params), state, grads)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    for _ in track(range(rounds), "updates of a ResNet-50"):
        for name in order.sample(sorted(runs), len(runs)):
            step, carry = runs[name]
            start = time.perf_counter()
            carry = jax.block_until_ready(step(*carry, grads))
            seconds[name].append(time.perf_counter() - start)
            runs[name] = step, carry
    return seconds


def compile_times(leaves: int) -> dict[str, tuple[float, float]]:
    """Seconds to trace and to compile, for each method."""
    params = random_tree(dense_shapes(leaves), 0.1)
    compiled_step(optax.identity(), random_tree(dense_shapes(2), 0.1))  # warm up
    return {
        name: compiled_step(front, params)[2]
        for name, front in track(methods().items(), "compiling")
    }


def update_table(seconds: dict[str, list[float]]) -> Table:
    alone = np.median(seconds["adam alone"])
    table = Table(title="update of front + adam, ResNet-50: time over adam alone")
    for column in ("in front of adam", "median ms", "ratio", "quartiles"):
        table.add_column(column, justify="left" if "adam" in column else "right")
    for name, times in seconds.items():
        low, median, high = np.quantile(times, [0.25, 0.5, 0.75])
        table.add_row(
            name,
            f"{1e3 * median:.1f}",
            f"{median / alone:.2f}",
            f"{low / alone:.2f} - {high / alone:.2f}",
        )
    return table


def compile_table(compiling: dict[str, tuple[float, float]], leaves: int) -> Table:
    rms = sum(compiling["clip_by_block_rms"])
    table = Table(title=f"trace and compile, {leaves} leaves")
    for column in (
        "in front of adam",
        "trace s",
        "compile s",
        "over clip_by_block_rms",
    ):
        table.add_column(column, justify="left" if "adam" in column else "right")
    for name, (trace, compile_) in compiling.items():
        ratio = (trace + compile_) / rms
        table.add_row(name, f"{trace:.1f}", f"{compile_:.1f}", f"{ratio:.2f}")
    return table


def environment() -> dict[str, Any]:
    """The machine and the versions that a record was made with."""
    return {
        "machine": platform.machine(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "optax": optax.__version__,
        "stablegrad_optax": sg.__version__,
    }


def measure(rounds: int, leaves: int, console: Console) -> dict[str, Any]:
    """Measures and shows both tables, and returns their numbers."""
    seconds = update_times(rounds)
    console.print(update_table(seconds))
    compiling = compile_times(leaves)
    console.print(compile_table(compiling, leaves))
    return {
        "dtype": "float32",
        "update_seconds": seconds,
        "leaves": leaves,
        "trace_and_compile_seconds": compiling,
    }


def main(options: Options) -> None:
    console = Console()
    numbers = measure(options.rounds, options.leaves, console)
    if options.out is not None:
        record = environment() | numbers
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        console.print(f"Numbers: {options.out}")


if __name__ == "__main__":
    parsed = tyro.cli(Options)
    if parsed.rounds < 1 or parsed.leaves < 2:
        print("error: rounds must be at least 1 and leaves at least 2", file=sys.stderr)
        sys.exit(2)
    main(parsed)
