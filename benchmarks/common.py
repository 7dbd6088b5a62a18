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
import tyro
from rich.progress import track
from rich.table import Table

import stablegrad_optax as sg


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a benchmark: every number in them is positive."""

    out: Path | None = None
    """JSON file for the results; none by default."""

    def check(self) -> None:
        """Raises ValueError, with the name of the option, if a value makes no sense."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not number > 0:
                    raise ValueError(f"{field.name} must be positive, got {number}")
        if self.out is not None and not self.out.absolute().parent.is_dir():
            raise ValueError(f"out must be in an existing folder, got {self.out}")


T = TypeVar("T")
Found = Mapping[str, Mapping[str, Any]]
"""What was measured by method; "seconds" is the list of its times."""
PACKAGES = ("jax", "optax", "flax", "folx", "jinns", "deepxde")


def run(options: type[Any], main: Callable[[Any], int | None]) -> NoReturn:
    """Parses the command line, runs `main` on it, and exits with what it returns."""
    parsed = tyro.cli(options)
    try:
        parsed.check()
    except ValueError as error:
        fail(error)
    sys.exit(main(parsed))


def fail(error: Exception) -> NoReturn:
    """Ends the program with one line that says what was wrong."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def seconds_of(f: Callable[..., T], *args: Any) -> tuple[float, T]:
    """The time of a call, and its result."""
    start = time.perf_counter()
    result = jax.block_until_ready(f(*args))
    return time.perf_counter() - start, result


def repeated(step: Callable[[T], T], carry: T) -> Callable[[], float]:
    """A function that applies `step` to its last result, and returns the time."""
    carry = step(carry)  # the first call is slower

    def timed() -> float:
        nonlocal carry
        seconds, carry = seconds_of(step, carry)
        return seconds

    return timed


def in_turns(
    timed: Mapping[str, Callable[[], float]], rounds: int, task: str
) -> dict[str, list[float]]:
    """Calls all functions in each round, in random order."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    order = random.Random(0)
    for _ in track(range(rounds), task):
        for name in order.sample(sorted(timed), len(timed)):
            seconds[name].append(timed[name]())
    return seconds


def ratios(found: Found) -> dict[str, np.ndarray]:
    """Quartiles of each method's time over the median of the first one's."""
    first = np.median(next(iter(found.values()))["seconds"])
    return {
        name: np.quantile(numbers["seconds"], [0.25, 0.5, 0.75]) / first
        for name, numbers in found.items()
    }


def time_table(title: str, found: Found, **more: str) -> Table:
    """Medians, ratios with their quartiles, and more numbers by their formats."""
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
    return table


def save(options: Options, results: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the results, written to the file that the options name, if any."""
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
    if options.out is not None:
        # No timing is accurate to more than five digits.
        rounded = json.loads(
            json.dumps(record), parse_float=lambda x: float(f"{float(x):.5g}")
        )
        lines = (f"{json.dumps(name)}: {json.dumps(x)}" for name, x in rounded.items())
        options.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return record
