"""The two traps of equal scales, and how the rule leaves them: one run of each.

python -m benchmarks.loss_terms.traps --out FILE.png

Laplace's equation with one warm side, and reaction and diffusion: terms on equal scales
(the rule of 0.1) settle at a plane and at a function of time alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro

import stablegrad_optax as sg
from benchmarks.loss_terms.methods import METHODS, RESIDUAL
from examples.common import optimizers, pictures
from examples.pinn.config import Config
from examples.pinn.network import stack_axis
from examples.pinn.objective import Objective

RULES = {"equal scales (0.1)": "equal scales (0.1)", "balance_terms": "balanced"}
PROBLEMS = {
    "laplace": ("top", "others"),
    "reaction-diffusion": ("initial", "ends"),
}
"""The two terms whose gradients come to cancel or, in the second, of which one pulls
as hard as ever though it is satisfied."""
RATE, EVERY = 3e-3, 20


def history(
    problem: str, method: str, steps: int, seed: int
) -> tuple[dict[str, Any], float]:
    """What the terms were at every EVERY-th step, and the error at the end."""
    config = Config(
        Path(),
        problem=problem,
        depth=16,
        width=32,
        initialization="glorot",
        steps=steps,
        interior_points=256,
        condition_points=64,
    )
    objective = Objective(config)
    names = RESIDUAL, *(c.name for c in objective.problem.conditions)
    schedule = optax.cosine_decay_schedule(RATE, steps)
    muon = optimizers.base("muon", schedule, stack_axis)
    tx = optax.chain(METHODS[method](names, steps), muon)
    key = jax.random.key(1000 + seed)

    def step(carry, i):
        params, state = carry
        points = objective.sample(jax.random.fold_in(key, i), config.interior_points)
        values, grads = sg.value_and_grad_of_terms(
            lambda params: objective.terms(params, points)[0]
        )(params)
        updates, state = tx.update(grads, state, params, values=values)
        scales, front = sg.term_scales(grads), state[0]
        weights = front["weights"] if isinstance(front, dict) else front.weights
        found = {
            "L / s": {name: values[name] / scales[name] for name in names},
            "pull": {name: weights[name] * scales[name] for name in names},
            "cosine": sg.term_alignment({n: grads[n] for n in PROBLEMS[problem]})[0, 1],
        }
        return (optax.apply_updates(params, updates), state), found

    @jax.jit
    def train(params):
        (params, _), found = jax.lax.scan(
            step, (params, tx.init(params)), jnp.arange(steps)
        )
        return jax.tree.map(lambda x: x[::EVERY], found), objective.errors(params)["u"]

    with jax.default_matmul_precision("highest"):
        found, error = train(objective.initial_params(jax.random.key(seed)))
    return jax.device_get(found), float(error)


def draw(axes: Sequence[Any], found: dict[str, Any], steps: int) -> None:
    at = np.arange(0, steps, EVERY)
    axes[0].plot(at, found["cosine"], color="black", linewidth=0.8)
    axes[0].set(ylim=(-1.05, 1.05))
    for ax, name in zip(axes[1:], ("L / s", "pull"), strict=True):
        for term, values in found[name].items():
            # A gradient of zero has no place on a logarithmic axis.
            shown = np.where(values > 0, values, np.nan)
            ax.semilogy(at, shown, label=term, linewidth=0.9)
    axes[1].set(ylim=(1e-3, 1e2))
    axes[2].set(ylim=(1e-2, 1e1))


def main(out: Path, steps: int = 2000, seed: int = 0) -> None:
    """Trains both problems by both rules, and draws what became of their terms."""
    figure, axes = plt.subplots(
        3, 4, figsize=(12, 6.5), sharex=True, sharey="row", layout="constrained"
    )
    columns = iter(axes.T)
    for problem, pair in PROBLEMS.items():
        for rule, method in RULES.items():
            column = next(columns)
            found, error = history(problem, method, steps, seed)
            draw(column, found, steps)
            column[0].set_title(f"{problem}\n{rule}: error {error:.2g}")
            column[0].annotate(
                f"{pair[0]}, {pair[1]}",
                (0.97, 0.9),
                xycoords="axes fraction",
                ha="right",
            )
            column[1].legend(fontsize="small", loc="lower left")
            column[2].set_xlabel("step")
    labels = "cosine of two gradients", "L / s", "weight times s"
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    pictures.save(figure, out)


if __name__ == "__main__":
    tyro.cli(main)
