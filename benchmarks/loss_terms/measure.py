"""Training by one method: all learning rates, weights and seeds in one program."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

import stablegrad_optax as sg
from benchmarks.loss_terms.methods import METHODS
from examples.common import optimizers
from examples.common.optimizers import Base
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import Objective, initial_params

CHUNKS = 20


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

    def objective(self) -> Objective:
        options = dataclasses.asdict(self)
        del options["rates"]
        return Objective(Config(Path(), **options))


def chunks(steps: int) -> list[tuple[np.int32, np.int32]]:
    """Where the parts of a run begin and end, between which its progress is shown."""
    ends = np.linspace(0, steps, CHUNKS + 1).astype(np.int32)
    return list(itertools.pairwise(ends))


def errors(
    case: Case,
    base: Base,
    method: str,
    rates: Sequence[float],
    weights: Sequence[float],
    seeds: int,
) -> np.ndarray:
    """Relative L2 errors at the end, of shape (rates, weights, seeds)."""
    objective = case.objective()
    names = sorted(["residual", *(c.name for c in objective.problem.conditions)])
    residual, number = names.index("residual"), len(names)
    combine = METHODS[method]

    def optimizer(lr):
        schedule = optax.cosine_decay_schedule(lr, case.steps)
        if method == "MultiAdam":  # it is one itself
            return optax.scale_by_learning_rate(schedule)
        return optimizers.base(base, schedule, stack_axis)

    def start(lr, weight, seed):
        params = initial_params(objective.config, jax.random.key(seed))
        stacked = jax.tree.map(lambda x: jnp.zeros((number, *x.shape)), params)
        return params, combine.init(stacked), optimizer(lr).init(params)

    def advance(carry, first, end, lr, weight, seed):
        key = jax.random.key(1000 + seed)

        def step(i, carry):
            params, balance, state = carry
            points = objective.sample(jax.random.fold_in(key, i), case.interior_points)
            _, grads = sg.value_and_grad_of_terms(
                lambda params: objective.terms(params, points)[0]
            )(params)
            total, balance = combine.update(
                grads, balance, params, weight=weight, residual=residual
            )
            updates, state = optimizer(lr).update(total, state, params)
            return optax.apply_updates(params, updates), balance, state

        return jax.lax.fori_loop(first, end, step, carry)

    @jax.jit
    @jax.vmap
    def error(carry):
        return objective.errors(carry[0])["u"]

    product = itertools.product(rates, weights, range(seeds))
    columns = [jnp.asarray(x) for x in zip(*product, strict=True)]
    carry: Any = jax.jit(jax.vmap(start))(*columns)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(jax.vmap(advance, (0, None, None, 0, 0, 0)), donate_argnums=0)
        task = f"{case.problem} {base} {method}"
        for first, end in track(chunks(case.steps), task):
            carry = run(carry, first, end, *columns)
            jax.block_until_ready(carry)
        found = np.asarray(error(carry), float)
    return found.reshape(len(rates), len(weights), seeds)
