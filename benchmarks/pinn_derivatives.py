"""What derivatives of a deep network cost, by each method that a JAX user could take.

python -m benchmarks.pinn_derivatives [--rounds 9] [--out FILE.json]

The step is the value and the gradient, with respect to the parameters, of the mean
square of the residual Δu - f. All methods differentiate the same network at the same
points in the same run, in random order in each round; first of all each has to give the
Laplacian that nested forward mode gives in double precision. A second table holds what
it takes to compile the training program at several depths.
"""

import dataclasses
import json
import random
import statistics
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from benchmarks import (
    pinn_derivatives_deepxde,
    pinn_derivatives_jinns,
    pinn_derivatives_methods,
    pinn_derivatives_report,
)
from benchmarks.overhead import environment
from benchmarks.pinn_derivatives_methods import Case, UnavailableError
from benchmarks.pinn_derivatives_timing import MATMUL_PRECISION, LocalStep, Step
from examples.pinn.config import Config
from examples.pinn.train import Program

TOLERANCE = 1e-5
"""Of the Laplacian, relative to its largest value."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What derivatives of a deep network cost, by each method."""

    depth: int = 32
    """Hidden layers."""
    width: int = 64
    """Units of each hidden layer."""
    points: int = 4096
    """Collocation points."""
    rounds: int = 9
    """Timed steps for each method."""
    methods: tuple[str, ...] = ()
    """Beginnings of the names of those to compare; all by default."""
    compile_depths: tuple[int, ...] = (4, 64, 128)
    """Depths at which to compile the training program."""
    compile_rounds: int = 3
    """Times that it is compiled at each depth."""
    out: Path | None = None
    """JSON file for the results, beside which the figure goes; none by default."""


def chosen(beginnings: tuple[str, ...]) -> dict[str, Any]:
    """The methods to compare; the first of all is always among them."""
    methods = (
        pinn_derivatives_methods.methods()
        | pinn_derivatives_jinns.methods()
        | pinn_derivatives_deepxde.methods()
    )
    first = next(iter(methods))
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in methods):
            raise ValueError(
                f"no method begins with {beginning!r}; there are {', '.join(methods)}"
            )
    return {
        name: method
        for name, method in methods.items()
        if not beginnings or name == first or name.startswith(beginnings)
    }


def prepare(method: Any, case: Case) -> Step:
    """The method's compiled step."""
    candidate = method(case)
    if not isinstance(candidate, pinn_derivatives_methods.Candidate):
        return candidate
    _, points = case.inputs()
    return LocalStep(candidate.laplacian, candidate.loss, candidate.params, points)


def measure(methods: dict[str, Any], case: Case, rounds: int) -> dict[str, Any]:
    """For each method the error of its Laplacian, compile seconds and step seconds."""
    exact = pinn_derivatives_methods.exact_laplacian(case)
    steps: dict[str, Step] = {}
    found: dict[str, Any] = {}
    try:
        for name, method in track(methods.items(), "compiling"):
            try:
                step = steps[name] = prepare(method, case)
            except UnavailableError as error:
                found[name] = {"unavailable": str(error)}
                continue
            deviation = np.max(np.abs(step.laplacian - exact))
            found[name] = {
                "error": float(deviation / np.max(np.abs(exact))),
                "loss": step.loss,
                "gradient_norm": step.gradient_norm,
                "compile_seconds": step.compile_seconds,
                "seconds": [],
            }
        order = random.Random(0)
        for _ in track(range(rounds), "steps"):
            for name in order.sample(sorted(steps), len(steps)):
                found[name]["seconds"].append(steps[name]())
    finally:
        for step in steps.values():
            step.close()
    return found


def compile_seconds(depths: tuple[int, ...], rounds: int) -> dict[str, list[float]]:
    """What the training program's first chunk takes to trace and compile, by depth."""
    seconds: dict[str, list[float]] = {str(depth): [] for depth in depths}
    order = random.Random(0)
    for _ in track(range(rounds), "compiling the training program"):
        for depth in order.sample(sorted(depths), len(depths)):
            jax.clear_caches()
            config = Config(out=Path(), depth=depth, steps=1, chunk=1)
            program = Program(config)
            next(program.run())
            seconds[str(depth)].append(program.compile_seconds)
    return seconds


def versions() -> dict[str, str | None]:
    """Of the packages that are compared."""

    def find(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {name: find(name) for name in ("flax", "folx", "jinns", "deepxde")}


def wrong(found: dict[str, Any]) -> list[str]:
    """The methods whose result is not the right one."""
    available = {name: m for name, m in found.items() if "error" in m}
    # Several implementations of one loss: their median is beyond doubt.
    norm = statistics.median(m["gradient_norm"] for m in available.values())
    return [
        name
        for name, m in available.items()
        if not (
            m["error"] <= TOLERANCE and abs(m["gradient_norm"] / norm - 1) <= TOLERANCE
        )
    ]


def main(options: Options) -> int:
    console = Console()
    jax.config.update("jax_default_matmul_precision", MATMUL_PRECISION)
    case = Case(options.depth, options.width, options.points)
    methods = chosen(options.methods)
    found = measure(methods, case, options.rounds)
    console.print(pinn_derivatives_report.step_table(found, dataclasses.asdict(case)))
    compiling = compile_seconds(options.compile_depths, options.compile_rounds)
    console.print(pinn_derivatives_report.compile_table(compiling))
    if options.out is not None:
        record = environment() | {
            "versions": versions(),
            "dtype": "float32",
            "matmul_precision": MATMUL_PRECISION,
            **dataclasses.asdict(case),
            "block": pinn_derivatives_methods.block(),
            "methods": found,
            "training_compile_seconds": compiling,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        figure = options.out.with_suffix(".png")
        pinn_derivatives_report.draw(json.loads(options.out.read_text()), figure)
        console.print(f"Numbers: {options.out}\nFigure: {figure}")
    failed = wrong(found)
    if failed:
        console.print(f"error: not the right derivatives: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    parsed = tyro.cli(Options)
    counts = (
        *(parsed.depth, parsed.width, parsed.points),
        *(parsed.rounds, parsed.compile_rounds, *parsed.compile_depths),
    )
    if min(counts) < 1:
        print("error: every count must be at least 1", file=sys.stderr)
        sys.exit(2)
    try:
        chosen(parsed.methods)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(parsed))
