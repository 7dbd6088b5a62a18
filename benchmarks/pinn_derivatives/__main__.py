"""What derivatives of a deep network cost, by each method that a JAX user could take.

python -m benchmarks.pinn_derivatives [--rounds 9] [--out FILE.json]

A step is the value and the parameter gradient of the mean square of Δu - f. All methods
differentiate the same network at the same points in the same run, in random order in
each round. First, each has to reproduce the Laplacian that nested forward mode gives in
double precision. A second table shows the time to compile the training program at
several depths.
"""

import dataclasses
import sys

import jax
import rich

from benchmarks import common
from benchmarks.pinn_derivatives.figure import draw
from benchmarks.pinn_derivatives.measure import compile_seconds, measure
from benchmarks.pinn_derivatives.methods import METHODS, Function, inputs

# Accelerators default to less, which spoils second derivatives.
MATMUL_PRECISION = "highest"

TOLERANCE = 1e-5
"""Of the Laplacian and of the gradient, relative to their largest elements."""


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
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
    """Prefixes of the names of the methods to compare with ours; all by default."""
    compile_depths: tuple[int, ...] = (4, 64, 128)
    """Depths at which to compile the training program."""
    compile_rounds: int = 3
    """Compilations at each depth."""

    def check(self) -> None:
        super().check()
        for prefix in self.methods:
            if not any(name.startswith(prefix) for name in METHODS):
                names = "; ".join(METHODS)
                raise ValueError(f"no method begins with {prefix!r}; use {names}")

    def chosen(self) -> dict[str, Function]:
        """The methods to compare; the first of all is always among them."""
        first, kept = next(iter(METHODS)), self.methods or ("",)
        return {
            name: laplacian
            for name, laplacian in METHODS.items()
            if name == first or name.startswith(kept)
        }


def main(options: Options) -> int:
    with jax.default_matmul_precision(MATMUL_PRECISION):
        params, points = inputs(options.depth, options.width, options.points)
        found = measure(options.chosen(), params, points, options.rounds)
        title = f"{options.depth} layers of {options.width}, {options.points} points"
        rich.print(common.time_table(title, found, compile_seconds=".1f", error=".1e"))
        compiling = compile_seconds(options.compile_depths, options.compile_rounds)
    by_depth = {depth: {"seconds": times} for depth, times in compiling.items()}
    rich.print(common.time_table("compiling the training program", by_depth))
    results = {"methods": found, "training_compile_seconds": compiling}
    record = common.save(options, {"matmul_precision": MATMUL_PRECISION} | results)
    if options.out is not None:
        draw(record, options.out.with_suffix(".png"))
    # A NaN is wrong, too.
    failed = [x for x, y in found.items() if not y["error"] <= TOLERANCE]
    if failed:
        print(f"error: wrong derivatives: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    common.run(Options, main)
