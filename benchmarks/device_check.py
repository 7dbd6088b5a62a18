"""Whether StableGrad is right on the device of this machine, and what it costs there.

python -m benchmarks.device_check [--rounds 40] [--leaves 200] [--out FILE.json]

Runs on whatever device JAX finds first: a GPU, a TPU, or the CPU. Each check prints its
largest relative error beside the tolerance; then come the tables of
benchmarks.overhead. Exit code 1 if a check failed, 2 for bad options.

The yardstick is the definition in float64 NumPy. A device may add in any order: float32
is admitted an error of 2e-5 beside the largest entry of a layer. It may take subnormal
numbers for zero: none are drawn.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import track
from rich.table import Table

import stablegrad_optax as sg
from benchmarks import overhead
from examples.deep_poisson import model, problem, train

SMALL = 40  # rows and columns of the layers that are not measured in one read
EXPONENTS = (-34, -30, -22, -19, -8, 0, 8, 19, 30, 36)

TOLERANCE = {"float32": 2e-5, "complex64": 2e-5, "bfloat16": 1e-2, "float16": 2e-3}
# Rounding grows through the network and from step to step: points in another order
# change what is compared by 4e-6, on one CPU.
TRAINING_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Options:
    """Whether StableGrad is right on this machine's device, and what it costs there."""

    rounds: int = 40
    """Timed updates for each method; 0 for the checks alone."""
    leaves: int = 200
    """Leaves of the trees for the compile times."""
    width: int = 1024
    """Rows and columns of the large layers in the checks, at least 129."""
    depth: int = 16
    """Hidden layers of the network whose training step is compared with the CPU's."""
    out: Path | None = None
    """JSON file for the results; none by default."""

    def __post_init__(self):
        for name, least in {"rounds": 0, "leaves": 2, "width": 129, "depth": 2}.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a check measured, and what it admits; no error where it did not run."""

    name: str
    error: float | None
    tolerance: float
    note: str = ""

    @property
    def status(self) -> str:
        if self.error is None:
            return "SKIPPED"
        # A NaN is no small error.
        return "OK" if self.error <= self.tolerance else "FAILED"


Check = Callable[[Options], Iterator[Result]]


# --- Gradients, and what becomes of them by definition --------------------------------


def widths(options: Options) -> tuple[int, int]:
    return SMALL, options.width


def random_layer(width: int, exponent: int = 0, *, mean=0.0, dtype=jnp.float32):
    """The gradient of a dense layer; zero where it would be subnormal."""
    rng = np.random.default_rng(0)
    smallest = float(jnp.finfo(dtype).tiny)

    def part(shape):
        x = rng.normal(mean, 1, shape) * 10.0**exponent
        return np.where(np.abs(x) < smallest, 0, x)

    def draw(*shape):
        x = part(shape)
        if jnp.issubdtype(dtype, np.complexfloating):
            x = x + 1j * part(shape)
        return jnp.asarray(x.astype(dtype))

    return {"kernel": draw(width, width), "bias": draw(width)}


def wide(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(complex if np.iscomplexobj(x) else float)


def scale_by_definition(kernel: Any, statistic: str = "std") -> float:
    entries = wide(kernel)
    if statistic == "std":
        return float(entries.std())
    return float(np.sqrt(np.mean(np.abs(entries) ** 2)))


def by_definition(layer: Any, reference: float = 1.0) -> Any:
    gain = reference / scale_by_definition(layer["kernel"])
    return jax.tree.map(lambda g: gain * wide(g), layer)


def updater(**options) -> Any:
    """The jitted update."""
    tx = sg.stablegrad(**options)
    return jax.jit(lambda grads: tx.update(grads, tx.init(grads))[0])


def relative_error(got: Any, expected: Any) -> float:
    """The largest over the leaves, each beside the largest entry that is expected."""

    def of_leaf(x, y):
        size = np.abs(y).max()
        return np.abs(wide(x) - y).max() / (size if size > 0 else 1.0)

    # NumPy's max, since Python's may lose a NaN.
    return float(np.max(jax.tree.leaves(jax.tree.map(of_leaf, got, expected))))


# --- Checks ---------------------------------------------------------------------------


def check_scales(options: Options) -> Iterator[Result]:
    for statistic in ("std", "rms"):
        for width in widths(options):
            measure = jax.jit(
                lambda layer, s=statistic: sg.layer_scales(layer, statistic=s)["."]
            )
            errors = []
            for exponent in EXPONENTS:
                for mean in (0.0, 0.5):
                    layer = random_layer(width, exponent, mean=mean)
                    expected = scale_by_definition(layer["kernel"], statistic)
                    errors.append(relative_error(measure(layer), expected))
            yield Result(
                f"{statistic} from 1e-34 to 1e36, width {width}",
                float(np.max(errors)),
                TOLERANCE["float32"],
            )


def check_updates(options: Options) -> Iterator[Result]:
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64):
        name = jnp.dtype(dtype).name
        exponents = [e for e in EXPONENTS if abs(e) < (4 if name == "float16" else 37)]
        for width in widths(options):
            update = updater(reference=0.5)
            errors = []
            for exponent in exponents:
                layer = random_layer(width, exponent, mean=0.5, dtype=dtype)
                got = update(layer)
                kept = jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(
                    lambda x: x.dtype, layer
                )
                error = relative_error(got, by_definition(layer, 0.5))
                errors.append(error if kept else math.inf)
            yield Result(
                f"update in {name}, width {width}",
                float(np.max(errors)),
                TOLERANCE[name],
            )


def check_degenerate(options: Options) -> Iterator[Result]:
    """Equal entries have their rms, and so has one entry; zeros stay as they are."""
    values = (1.0, -0.1, 1e-30, 3e33)
    for shape in ((options.width, options.width), (SMALL, SMALL), (1, 1)):
        update = updater()
        errors = [
            relative_error(update(jnp.full(shape, v)), np.full(shape, np.sign(v)))
            for v in values
        ]
        yield Result(
            f"equal entries, {shape[0]} x {shape[1]}",
            float(np.max(errors)),
            TOLERANCE["float32"],
        )
    for width in widths(options):
        zeros = {"kernel": jnp.zeros((width, width)), "bias": jnp.ones(width)}
        expected = jax.tree.map(wide, zeros)
        yield Result(
            f"a zero layer is unchanged, width {width}",
            relative_error(updater()(zeros), expected),
            0.0,
        )


def check_not_finite(options: Options) -> Iterator[Result]:
    """A NaN or Inf shows in its own layer and changes no other."""
    for width in widths(options):
        layer = random_layer(width)
        update = updater()
        errors = []
        for bad in (np.nan, np.inf):
            broken = layer | {"kernel": layer["kernel"].at[1, 2].set(bad)}
            got = update({"first": layer, "broken": broken, "last": layer})
            hidden = any(np.isfinite(x).any() for x in jax.tree.leaves(got["broken"]))
            for name in ("first", "last"):
                error = relative_error(got[name], by_definition(layer))
                errors.append(math.inf if hidden else error)
        yield Result(
            f"NaN and Inf stay in their layer, width {width}",
            float(np.max(errors)),
            TOLERANCE["float32"],
        )


def check_stacked(options: Options) -> Iterator[Result]:
    for width in widths(options):
        layers = [random_layer(width, exponent) for exponent in (-30, -3, 0, 25)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
        expected = jax.tree.map(lambda *x: np.stack(x), *map(by_definition, layers))
        yield Result(
            f"stacked layers as unstacked, width {width}",
            relative_error(updater(stack_axis=0)(stacked), expected),
            TOLERANCE["float32"],
        )


def check_layers_together(options: Options) -> Iterator[Result]:
    """Small and large layers in one program, some beyond the range of one read."""
    update = updater()
    for case, exponents in {"ordinary": (-4, 3), "extreme": (-30, 30)}.items():
        layers = {
            f"{width} {exponent}": random_layer(width, exponent)
            for width in widths(options)
            for exponent in exponents
        }
        expected = {name: by_definition(layer) for name, layer in layers.items()}
        yield Result(
            f"small and large layers, {case} scales",
            relative_error(update(layers), expected),
            TOLERANCE["float32"],
        )


def check_derivative(options: Options) -> Iterator[Result]:
    """Of Σ w g/σ: (w - Σ w g/σ · (g - mean)/(N σ)) / σ."""
    for width in widths(options):
        g, w = (wide(random_layer(width, mean=m)["kernel"]) for m in (0.5, 0.0))
        w = w.T
        gradient = jax.jit(jax.grad(lambda g, w: jnp.sum(w * updater()(g))))
        errors = []
        for exponent in (-30, 0, 30):
            scaled = jnp.asarray(g * 10.0**exponent, jnp.float32)
            got = wide(gradient(scaled, jnp.asarray(w, jnp.float32)))
            x, sigma = wide(scaled), scale_by_definition(scaled)
            along = np.sum(w * x) / sigma * (x - x.mean()) / (x.size * sigma)
            errors.append(relative_error(got * sigma, w - along))
        at_zero = gradient(jnp.zeros_like(g, jnp.float32), jnp.asarray(w, jnp.float32))
        errors.append(0.0 if np.isfinite(at_zero).all() else math.inf)
        yield Result(f"derivative, width {width}", float(np.max(errors)), 1e-4)


def check_training(options: Options) -> Iterator[Result]:
    """Steps of the example's network here and on the CPU: losses and layer scales.

    Not its parameters: adam makes a whole step of the sign of an entry that is nothing
    but rounding, which the loss hardly notices.
    """
    name = f"training as on the CPU, depth {options.depth}"
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        yield Result(name, None, TRAINING_TOLERANCE, f"no CPU backend: {error}")
        return
    config = train.Config(depth=options.depth, interior_points=32)
    network = model.DeepNetwork(config.depth, config.width)
    optimizer = train.methods(config)["StableGrad + adam"]
    # The same for both: random numbers round on each device in its own way.
    key = jax.random.key(0)
    points = jax.device_get(problem.sample_interior(key, config.interior_points))
    params = jax.device_get(jax.jit(network.init)(key, points))

    def loss(params):
        _, laplacian = model.value_and_laplacian(params, points)
        return jnp.mean((laplacian - problem.source(points)) ** 2)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        scales = sg.layer_scales(grads, stack_axis=model.stack_axis)
        return optax.apply_updates(params, updates), state, scales | {"loss": value}

    def run(device):
        with jax.default_device(device):
            carry = params, optimizer.init(params)
            history = []
            for _ in range(5):
                *carry, seen = step(*carry)
                history.append(jax.tree.map(wide, seen))
        return history

    device = jax.local_devices()[0]
    difference = relative_error(run(device), run(cpu))
    note = "the same device" if device == cpu else ""
    yield Result(name, difference, TRAINING_TOLERANCE, note)


def check_sharding(options: Options) -> Iterator[Result]:
    """Over all local devices: by jit, which gathers no gradient, and by shard_map."""
    devices = jax.local_devices()
    if len(devices) == 1:
        yield Result("sharded", None, 0.0, "one device")
        return
    mesh = Mesh(np.array(devices), ("model",))
    rows = PartitionSpec("model")
    for width in widths(options):
        layer = random_layer(len(devices) * math.ceil(width / len(devices)))
        expected = by_definition(layer)
        sharded = jax.device_put(layer, NamedSharding(mesh, rows))
        update = updater()
        gathers = "all-gather" in update.lower(sharded).compile().as_text()
        yield Result(
            f"jit, sharded over {len(devices)}, width {width}",
            math.inf if gathers else relative_error(update(sharded), expected),
            TOLERANCE["float32"],
            "gathers a gradient" if gathers else "",
        )
        mapped = jax.shard_map(
            updater(axis_name="model"), mesh=mesh, in_specs=rows, out_specs=rows
        )
        yield Result(
            f"shard_map over {len(devices)}, width {width}",
            relative_error(jax.jit(mapped)(layer), expected),
            TOLERANCE["float32"],
        )


CHECKS: tuple[Check, ...] = (
    check_scales,
    check_updates,
    check_degenerate,
    check_not_finite,
    check_stacked,
    check_layers_together,
    check_derivative,
    check_training,
    check_sharding,
)


def run_checks(options: Options, console: Console) -> list[Result]:
    """Runs them all, each line printed as it is there: a device may hang."""
    results = []
    for check in track(CHECKS, "checks", console=console):
        for result in _results(check, options):
            results.append(result)
            error = "" if result.error is None else f"{result.error:.1e}"
            console.print(
                f"{result.status:8}{result.name:48}{error:>8}  "
                f"(at most {result.tolerance:.0e}) {result.note}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    return results


def _results(check: Check, options: Options) -> Iterator[Result]:
    try:
        yield from check(options)
    except Exception as error:  # what a device cannot do is a finding as well
        first_line = str(error).partition("\n")[0]
        note = f"{type(error).__name__}: {first_line}"
        yield Result(check.__name__, math.inf, 0.0, note)


# --- Report ---------------------------------------------------------------------------


def memory() -> dict[str, Any]:
    """Memory statistics by device, for those that have them."""
    stats = {str(device): device.memory_stats() for device in jax.local_devices()}
    return {name: dict(numbers) for name, numbers in stats.items() if numbers}


def memory_table(statistics: dict[str, Any]) -> Table:
    table = Table(title="memory, MiB")
    for column in ("device", "in use", "peak", "limit"):
        table.add_column(column, justify="left" if column == "device" else "right")
    for name, numbers in statistics.items():
        keys = ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")
        table.add_row(name, *(f"{numbers.get(key, 0) / 2**20:,.0f}" for key in keys))
    return table


def write(out: Path, record: dict[str, Any], console: Console) -> None:
    out.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    console.print(f"Numbers: {out}")


def as_record(result: Result) -> dict[str, Any]:
    record = dataclasses.asdict(result) | {"status": result.status}
    if result.error is not None and not math.isfinite(result.error):
        record["error"] = str(result.error)  # JSON has neither NaN nor Inf
    return record


def main(options: Options) -> None:
    console = Console()
    device = jax.devices()[0]
    console.print(
        f"{jax.local_device_count()} x {device.device_kind}, {device.platform}"
    )
    # Elsewhere matrices are multiplied in TF32 or bfloat16 by default.
    with jax.default_matmul_precision("highest"):
        results = run_checks(options, console)
    record: dict[str, Any] = overhead.environment() | {
        "platform": device.platform,
        "platform_version": device.client.platform_version,
        "devices": jax.local_device_count(),
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "matmul_precision": "highest",
        "width": options.width,
        "depth": options.depth,
        "checks": [as_record(result) for result in results],
    }
    if options.out is not None:
        write(options.out, record, console)  # the overhead may yet fail
    if options.rounds:
        numbers = overhead.measure(options.rounds, options.leaves, console)
        record["overhead"] = numbers
    record["memory"] = memory()
    if record["memory"]:
        console.print(memory_table(record["memory"]))
    if options.out is not None:
        write(options.out, record, console)
    failed = sum(result.status == "FAILED" for result in results)
    console.print(f"{len(results)} checks, {failed} failed")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    try:
        parsed = tyro.cli(Options)
        if parsed.out is not None:
            parsed.out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    main(parsed)
