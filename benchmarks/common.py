"""What the benchmarks share: options, timing in random order, tables and records."""

import dataclasses
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
import rich
import tyro
from rich.progress import track
from rich.table import Table

import stablegrad_optax as sg
from examples.common.runs import RunError

T = TypeVar("T")
Found = Mapping[str, Mapping[str, Any]]
"""What was measured by method; "seconds" is the list of its times."""
Step = Callable[[], Any]
PACKAGES = ("jax", "optax", "flax", "folx", "jinns", "deepxde")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a benchmark: every number in them is positive."""

    out: Path | None = None
    """JSON file for the results; none by default."""


def run(options: type[Any], main: Callable[[Any], int | None]) -> NoReturn:
    """Parses the command line, runs `main` on it, and exits with what it returns."""
    parsed = tyro.cli(options)
    for name, value in vars(parsed).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not number > 0:
                sys.exit(f"error: {name} must be positive, got {number}")
    # Before hours of work.
    if parsed.out is not None and not parsed.out.absolute().parent.is_dir():
        sys.exit(f"error: out must be in an existing folder, got {parsed.out}")
    try:
        sys.exit(main(parsed))
    except RunError as error:
        sys.exit(f"error: {error}")


def seconds_of(f: Callable[..., T], *args: Any) -> tuple[float, T]:
    """The time of a call, and its result."""
    start = time.perf_counter()
    result = jax.block_until_ready(f(*args))
    return time.perf_counter() - start, result


def repeated(step: Callable[[T], T], carry: T) -> Step:
    """A function that applies `step` to its last result."""

    def next_step():
        nonlocal carry
        carry = step(carry)
        return carry

    return next_step


def compare(
    methods: Mapping[str, Callable[[], tuple[dict[str, Any], Step]]], rounds: int
) -> dict[str, dict[str, Any]]:
    """Makes the steps of all methods and times them, in random order in each round.

    A method returns what was measured in making its step, and the step. One whose
    package is missing raises ImportError, and is left out.
    """
    found, steps = {}, {}
    for name, make in track(methods.items(), "compiling"):
        try:
            found[name], steps[name] = make()
        except ImportError as missing:
            print(f"{name} is left out: {missing}")
    for name, step in steps.items():
        jax.block_until_ready(step())  # the first one is slower
        found[name]["seconds"] = []
    order = random.Random(0)
    for _ in track(range(rounds), "steps"):
        for name in order.sample(sorted(steps), len(steps)):
            found[name]["seconds"].append(seconds_of(steps[name])[0])
    return found


def ratios(found: Found) -> dict[str, np.ndarray]:
    """Quartiles of each method's time over the median of the first one's."""
    first = np.median(next(iter(found.values()))["seconds"])
    return {
        name: np.quantile(numbers["seconds"], [0.25, 0.5, 0.75]) / first
        for name, numbers in found.items()
    }


def show(title: str, found: Found, **more: str) -> None:
    """Prints medians, ratios with quartiles, and more numbers by their formats."""
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for column in ("ms", f"over {next(iter(found))}", *more):
        table.add_column(column.replace("_seconds", " s"), justify="right")
    for name, (low, median, high) in ratios(found).items():
        table.add_row(
            name,
            f"{1e3 * np.median(found[name]['seconds']):.1f}",
            f"{median:.2f} ({low:.2f}-{high:.2f})",
            *(format(found[name][key], digits) for key, digits in more.items()),
        )
    rich.print(table)


def save(options: Options, results: Mapping[str, Any]) -> None:
    """Writes the results and how they were made to the file of the options, if any."""
    if options.out is None:
        return
    settings = dataclasses.asdict(options).items()
    record = {
        "machine": platform.machine(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "stablegrad_optax": sg.__version__,
        **{name: version(name) for name in PACKAGES if find_spec(name)},
        "settings": {name: x for name, x in settings if not isinstance(x, Path)},
        **results,
    }
    # No timing is accurate to more than five digits.
    rounded = json.loads(
        json.dumps(record), parse_float=lambda x: float(f"{float(x):.5g}")
    )
    lines = (f"{json.dumps(name)}: {json.dumps(x)}" for name, x in rounded.items())
    options.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
