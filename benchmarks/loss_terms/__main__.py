"""Which weights do loss terms need, and which methods find them? Error over weight.

python -m benchmarks.loss_terms --out FILE.json [--cases "Helmholtz 7 x 50" ...]

Every method has the same networks, points, steps and rates. The weight is that of each
condition's mean square beside the residual's, fixed over a run. Runs that FILE.json
holds already are not made again.
"""

import dataclasses
import itertools
import json
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
from benchmarks.loss_terms.methods import METHODS, RESIDUAL
from examples.common import optimizers
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import Objective, initial_params

Base = Literal["muon", "adam"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem, a network, and the budget that all methods have."""

    problem: str
    depth: int
    width: int
    interior_points: int
    condition_points: int
    steps: int
    rates: Mapping[Base, tuple[float, ...]]
    """For each base optimizer."""


RATES: dict[Base, tuple[float, ...]] = {"muon": (3e-3, 1e-2), "adam": (1e-3, 3e-3)}
CASES = {
    "Helmholtz 7 x 50": Case("helmholtz", 7, 50, 128, 512, 20_000, RATES),
    "Burgers 8 x 40": Case("burgers", 8, 40, 1024, 128, 8000, RATES),
    "Poisson 16 x 32": Case("poisson", 16, 32, 256, 64, 2000, RATES),
    "Poisson 64 x 32": Case("poisson", 64, 32, 256, 64, 2000, RATES),
    "Helmholtz 5 x 50": Case(
        "helmholtz", 5, 50, 128, 128, 3000, {"muon": (5e-3,), "adam": (5e-3,)}
    ),
    "Burgers 5 x 40": Case(
        "burgers", 5, 40, 512, 64, 3000, {"muon": (1e-2,), "adam": (1e-2,)}
    ),
}


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Which weights do loss terms need, and which methods find them?"""

    cases: tuple[str, ...] = tuple(CASES)[:4]
    """Problem and network."""
    bases: tuple[Base, ...] = ("muon", "adam")
    """Base optimizers."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Ours, fixed weights, and other methods."""
    weights: tuple[float, ...] = tuple(10.0**k for k in range(-2, 7))
    """For fixed weights."""
    seeds: int = 5
    """Initial weights and sequences of points, the same for every method."""


def errors(
    case: Case,
    base: Base,
    method: str,
    rates: Sequence[float],
    weights: Sequence[float],
    seeds: int,
) -> np.ndarray:
    """Relative L2 errors at the end, of shape (rates times weights, seeds).

    All of them are trained side by side, in one program.
    """
    sizes = dataclasses.asdict(case)
    del sizes["rates"]
    config = Config(Path(), **sizes)
    objective = Objective(config)
    terms = RESIDUAL, *(c.name for c in objective.problem.conditions)

    def error(lr, weight, seed):
        schedule = optax.cosine_decay_schedule(lr, case.steps)
        optimizer = optimizers.base(base, schedule, stack_axis)
        if method == "MultiAdam":  # it is one itself
            optimizer = optax.scale_by_learning_rate(schedule)
        tx = optax.chain(METHODS[method](terms), optimizer)
        key = jax.random.key(1000 + seed)

        def step(i, carry):
            params, state = carry
            points = objective.sample(jax.random.fold_in(key, i), case.interior_points)
            losses = sg.value_and_grad_of_terms(
                lambda params: objective.terms(params, points)[0]
            )
            values, grads = losses(params)
            updates, state = tx.update(
                grads, state, params, values=values, weight=weight
            )
            return optax.apply_updates(params, updates), state

        params = initial_params(config, jax.random.key(seed))
        carry = params, tx.init(params)
        params, _ = jax.lax.fori_loop(0, case.steps, step, carry)
        return objective.errors(params)["u"]

    product = itertools.product(rates, weights, range(seeds))
    columns = [jnp.asarray(x) for x in zip(*product, strict=True)]
    with jax.default_matmul_precision("highest"):
        found = np.asarray(jax.jit(jax.vmap(error))(*columns), float)
    return found.reshape(-1, seeds)


def main(options: Options) -> None:
    for option, known in (("cases", CASES), ("methods", METHODS)):
        for name in getattr(options, option):
            if name not in known:
                sys.exit(f"error: {option} must be of {', '.join(known)}, got {name}")
    runs: list[dict[str, Any]] = []
    if options.out is not None and options.out.exists():
        runs = json.loads(options.out.read_text())["runs"]
    product = itertools.product(options.cases, options.bases, options.methods)
    for name, base, method in track(list(product), "training"):
        if method == "MultiAdam" and base != "adam":
            continue
        case, is_fixed = CASES[name], method == "weight"
        rates, weights = case.rates[base], options.weights if is_fixed else (1.0,)
        key = {"case": name, "base": base, "method": method, "steps": case.steps}
        keys = [
            key | {"lr": lr} | ({"weight": weight} if is_fixed else {})
            for lr, weight in itertools.product(rates, weights)
        ]
        others = [run for run in runs if key_of(run) not in keys]
        made = [run for run in runs if len(run["errors"]) == options.seeds]
        if all(key in map(key_of, made) for key in keys):
            continue
        reached = errors(case, base, method, rates, weights, options.seeds)
        for key, numbers in zip(keys, reached, strict=True):
            # JSON has no NaN.
            shown = [float(x) if np.isfinite(x) else None for x in numbers]
            others.append(key | {"errors": shown})
        runs = others
        # The file may hold runs of other options: each has its own settings.
        common.save(options, {"settings": {}, "runs": runs})
    rich.print(table(runs))


def key_of(run: dict[str, Any]) -> dict[str, Any]:
    """What tells runs apart."""
    return {name: x for name, x in run.items() if name != "errors"}


def table(runs: list[dict[str, Any]]) -> Table:
    """Errors of the seeds in order, lowest first."""
    shown = Table("case", "base", "method", "weight", "lr", "relative L2 errors")
    for run in runs:
        numbers = sorted(np.inf if x is None else x for x in run["errors"])
        weight = f"{run['weight']:g}" if "weight" in run else ""
        lr, reached = f"{run['lr']:g}", " ".join(f"{x:.2g}" for x in numbers)
        shown.add_row(run["case"], run["base"], run["method"], weight, lr, reached)
    return shown


if __name__ == "__main__":
    common.run(Options, main)
