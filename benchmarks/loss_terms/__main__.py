"""Which weights do loss terms need, and which methods find them? Error over weight.

python -m benchmarks.loss_terms --out FILE.json [--reference FOLDER]

Every method has the same networks, initial weights, points, steps and rates. The weight
is that of each condition's mean square beside the residual's, fixed over a run. Runs
that FILE.json holds already are not made again. FOLDER holds the reference data of
PINNacle's problems, which are left out without it.
"""

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
from rich.progress import track
from rich.table import Table

import stablegrad_optax as sg
from benchmarks import common
from benchmarks.loss_terms.constant import of_best_constant
from benchmarks.loss_terms.figure import label
from benchmarks.loss_terms.methods import METHODS, OPTIMIZERS, RESIDUAL, VARIANTS
from benchmarks.pinnacle import reference
from examples.common import optimizers
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import INITIALIZERS, Objective

Base = Literal["muon", "adam"]
PINNACLE = Path(reference.__file__).with_name("problems")
"""Problems whose reference is PINNacle's: they need --reference."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem, a network, and the budget that all methods have."""

    problem: str
    depth: int
    width: int
    interior_points: int
    condition_points: int
    steps: int
    rate: float = 3e-3
    """The learning rate of Muon; that of Adam is a third of it."""


CASES = {
    "Poisson 1-D 16 x 32": Case("poisson1d", 16, 32, 64, 2, 1000),
    "Poisson 16 x 32": Case("poisson", 16, 32, 256, 64, 2000),
    "Poisson 64 x 32": Case("poisson", 64, 32, 256, 64, 2000),
    "Helmholtz 5 x 50": Case("helmholtz", 5, 50, 128, 128, 3000, 1e-2),
    "Burgers 5 x 40": Case("burgers", 5, 40, 512, 64, 3000, 1e-2),
    "inverse Burgers 5 x 40": Case("burgers-inverse", 5, 40, 512, 64, 3000, 1e-2),
    "heat 16 x 32": Case("heat", 16, 32, 256, 64, 2000),
    "Laplace 16 x 32": Case("laplace", 16, 32, 256, 64, 2000),
    "reaction, diffusion 16 x 32": Case("reaction-diffusion", 16, 32, 256, 64, 2000),
    "wave, velocity 16 x 32": Case("wave-velocity", 16, 32, 256, 64, 2000),
    "hot plate 16 x 32": Case("hot-plate", 16, 32, 256, 64, 2000),
    "Lotka-Volterra 16 x 32": Case("lotka-volterra", 16, 32, 256, 64, 2000),
    "L-shape 5 x 50": Case("l-shape", 5, 50, 256, 64, 3000, 1e-2),
    "Klein-Gordon 5 x 50": Case("klein-gordon", 5, 50, 256, 64, 3000, 1e-2),
    "Kovasznay 5 x 50": Case("kovasznay", 5, 50, 256, 128, 3000, 1e-2),
    "wave 5 x 50": Case("wave", 5, 50, 512, 128, 6000, 1e-2),
    "Poisson 2d-C 5 x 50": Case(
        str(PINNACLE / "poisson_2d_c.py"), 5, 50, 512, 128, 3000, 1e-2
    ),
    "NS 2d-C 5 x 50": Case(str(PINNACLE / "ns_2d_c.py"), 5, 50, 512, 128, 3000, 1e-2),
    "advection 5 x 50": Case("advection", 5, 50, 512, 128, 6000, 1e-2),
    "Allen-Cahn 5 x 50": Case("allen-cahn", 5, 50, 512, 128, 20_000, 1e-2),
}
"""The set: a budget for each problem, the same for all methods."""
LONG = {
    "Helmholtz 7 x 50": Case("helmholtz", 7, 50, 128, 512, 20_000),
    "Burgers 8 x 40": Case("burgers", 8, 40, 1024, 128, 8000, 1e-2),
}
"""Longer runs, for an accelerator."""
EVERY = CASES | LONG
SETTINGS = [
    {"decay": decay, "power": power}
    for decay in (0.0, 0.9, 0.99, 0.999)
    for power in (0.0, 0.25, 0.5, 1.0)
]
"""Other settings of our rule."""
TEST_POINTS = 2048
"""At which terms are compared with those of a constant."""

# What anyinit 0.4.0 gives to hidden layers between tanh: a gain of 1.891.
INITIALIZERS["anyinit"] = lambda activation: jax.nn.initializers.variance_scaling(
    1.891**2, "fan_in", "normal"
)


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Which weights do loss terms need, and which methods find them?"""

    cases: tuple[str, ...] = tuple(CASES)
    """Problem and network."""
    bases: tuple[Base, ...] = ("muon",)
    """Base optimizers."""
    methods: tuple[str, ...] = (*METHODS, *OPTIMIZERS)
    """Ours, fixed weights, and other methods; or variants of ours, by name."""
    weights: tuple[float, ...] = (1.0, 100.0, 10_000.0)
    """For fixed weights."""
    initialization: str = "critical"
    """Of the networks' weights."""
    rates: tuple[float, ...] | None = None
    """Learning rates, instead of one for each case."""
    seeds: int = 3
    """Initial weights and sequences of points, the same for every method."""
    reference: Path | None = None
    """Folder of PINNacle's reference data; without it its problems are left out."""

    def of_method(self, method: str) -> list[dict[str, float]]:
        """The options that a method is run with, side by side."""
        if method == "weight":
            return [{"weight": weight} for weight in self.weights]
        return SETTINGS if method == "settings" else [{}]


def results(
    case: Case,
    base: Base,
    method: str,
    initialization: str,
    rates: Sequence[float],
    of_method: Sequence[Mapping[str, float]],
    seeds: int,
) -> dict[str, np.ndarray]:
    """Trains all rates, options and seeds side by side, in one program.

    Returns:
      "errors", the relative L2 error at the end of the field with the largest; and
      "unsatisfied", the largest of the terms over what they are for the best constant
      field. Shape (rates times options, seeds).
    """
    settings = dataclasses.asdict(case) | {"initialization": initialization}
    del settings["rate"]
    config = Config(Path(), **settings)
    objective = Objective(config)
    terms = RESIDUAL, *(c.name for c in objective.problem.conditions)
    constant = of_best_constant(objective)

    def train(lr, options, seed):
        schedule = optax.cosine_decay_schedule(lr, case.steps)
        optimizer = optimizers.base(base, schedule, stack_axis)
        if method in OPTIMIZERS:
            tx = OPTIMIZERS[method](terms, optimizer, schedule)
        else:
            one_gradient = (METHODS | VARIANTS)[method](terms, case.steps, **options)
            tx = optax.chain(one_gradient, optimizer)
        key = jax.random.key(1000 + seed)

        def step(i, carry):
            params, state = carry
            points = objective.sample(jax.random.fold_in(key, i), case.interior_points)
            losses = sg.value_and_grad_of_terms(
                lambda params: objective.terms(params, points)[0]
            )
            values, grads = losses(params)
            updates, state = tx.update(grads, state, params, values=values)
            return optax.apply_updates(params, updates), state

        params = objective.initial_params(jax.random.key(seed))
        carry = params, tx.init(params)
        params, _ = jax.lax.fori_loop(0, case.steps, step, carry)
        points = objective.sample(jax.random.key(3001), TEST_POINTS)
        losses, _ = objective.terms(params, points)
        shares = [x / constant[name] for name, x in losses.items()]
        return {
            "errors": jnp.max(jnp.stack([*objective.errors(params).values()])),
            "unsatisfied": jnp.max(jnp.stack(shares)),
        }

    columns = list(itertools.product(rates, of_method, range(seeds)))
    columns = jax.tree.map(lambda *x: jnp.asarray(x), *columns)
    with jax.default_matmul_precision("highest"):
        found = jax.device_get(jax.jit(jax.vmap(train))(*columns))
    return {name: np.reshape(x, (-1, seeds)) for name, x in found.items()}


def main(options: Options) -> None:
    methods = {**METHODS, **OPTIMIZERS, **VARIANTS}
    for option, names, known in (
        ("cases", options.cases, EVERY),
        ("methods", options.methods, methods),
        ("initialization", [options.initialization], INITIALIZERS),
    ):
        for name in names:
            if name not in known:
                sys.exit(f"error: {option} must be of {', '.join(known)}, got {name}")
    cases = {name: EVERY[name] for name in options.cases}
    if options.reference is None:
        cases = {n: c for n, c in cases.items() if str(PINNACLE) not in c.problem}
    else:
        os.environ[reference.FOLDER] = str(options.reference)
    runs: list[dict[str, Any]] = []
    if options.out is not None and options.out.exists():
        runs = json.loads(options.out.read_text())["runs"]
    product = list(itertools.product(options.methods, cases.items(), options.bases))
    for method, (name, case), base in track(product, "training"):
        if method == "MultiAdam" and base != "adam":
            continue
        rates = options.rates or (case.rate / (3 if base == "adam" else 1),)
        of_method = options.of_method(method)
        key = {
            "case": name, "base": base, "method": method, "steps": case.steps,
            "initialization": options.initialization,
        }  # fmt: skip
        keys = [
            key | {"lr": lr} | more for lr, more in itertools.product(rates, of_method)
        ]
        others = [run for run in runs if key_of(run) not in keys]
        made = [run for run in runs if len(run["errors"]) == options.seeds]
        if all(key in map(key_of, made) for key in keys):
            continue
        start = options.initialization, rates, of_method, options.seeds
        found = results(case, base, method, *start)
        for i, key in enumerate(keys):
            others.append(key | {name: _jsonable(x[i]) for name, x in found.items()})
        runs = others
        # The file may hold runs of other options: each has its own settings.
        common.save(options, {"settings": {}, "runs": runs})
    rich.print(table(runs))


def key_of(run: dict[str, Any]) -> dict[str, Any]:
    """What tells runs apart."""
    found = ("errors", "unsatisfied")
    return {name: x for name, x in run.items() if name not in found}


def _jsonable(values: np.ndarray) -> list[float | None]:
    """JSON has no NaN."""
    return [float(x) if np.isfinite(x) else None for x in values]


def table(runs: list[dict[str, Any]]) -> Table:
    """Errors of the seeds in order, lowest first."""
    shown = Table("case", "base", "method", "lr", "relative L2 errors")
    for run in runs:
        numbers = sorted(np.inf if x is None else x for x in run["errors"])
        lr, reached = f"{run['lr']:g}", " ".join(f"{x:.2g}" for x in numbers)
        shown.add_row(run["case"], run["base"], label(run), lr, reached)
    return shown


if __name__ == "__main__":
    common.run(Options, main)
