"""The columns of a run, one for each learning rate and seed, and how they advance."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import stablegrad_optax as sg
from examples.pinn import solved
from examples.pinn.network import stack_axis
from examples.pinn.objective import Objective, weighted_sum
from examples.pinn.step import Phase


class Column(NamedTuple):
    """The training of one learning rate and seed.

    Of several columns the leaves have a leading axis: the seeds of the first rate, then
    those of the next.
    """

    lr: jax.Array
    seed: jax.Array
    params: Any
    state: Any
    stopped_at: jax.Array
    """The step at which loss or weights were no longer finite, or -1."""


def columns_of(objective: Objective) -> Column:
    """The columns of a run at its beginning, without an optimizer state."""
    config = objective.config

    def start(lr, seed):
        params = objective.initial_params(jax.random.key(seed))
        return Column(lr, seed, params, state=(), stopped_at=jnp.int32(-1))

    rates = jnp.repeat(jnp.asarray(config.lr, config.dtype), config.seeds)
    seeds = jnp.tile(jnp.arange(config.seeds), len(config.lr))
    return jax.vmap(start)(rates, seeds)


def begin(phase: Phase, columns: Column) -> Column:
    """Gives all columns the optimizer state of a phase."""
    state = jax.vmap(phase.start)(columns.params, columns.lr, columns.seed)
    return columns._replace(state=state)


def template(objective: Objective, phases: Sequence[Phase], step: int) -> Column:
    """The structure of the columns after some steps, for reading a checkpoint.

    At the boundary of two phases it is that of the phase that ends there.
    """
    phase = next(phase for phase in phases if step <= phase.end)
    return jax.eval_shape(lambda: begin(phase, columns_of(objective)))


def advance(
    phase: Phase, column: Column, first: jax.Array, end: jax.Array
) -> tuple[Column, dict[str, Any]]:
    """Steps `first` to `end` of a column, and a report of the last of them."""

    # Traced once, for its shapes and for the loop.
    @jax.jit
    def update(column, index):
        return phase.update(column.params, column.state, column.lr, column.seed, index)

    def step(index, carry):
        column, _ = carry
        old = column.params, column.state
        *new, found = update(column, index)
        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(new[0])]
        finite.append(jnp.isfinite(found.loss))
        good = jax.tree.reduce(jnp.logical_and, finite)
        stops_here = (column.stopped_at < 0) & ~good
        stopped_at = jnp.where(stops_here, index, column.stopped_at)
        # A stopped column keeps its last values, and the others continue.
        params, state = jax.tree.map(
            lambda new, old: jnp.where(stopped_at < 0, new, old), tuple(new), old
        )
        return Column(column.lr, column.seed, params, state, stopped_at), found

    *_, found = jax.eval_shape(update, column, first)
    found = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)
    column, found = jax.lax.fori_loop(first, end, step, (column, found))
    names = sorted(found.term_grads)  # as the leaves of a dict are
    cosines = sg.term_alignment(found.term_grads) if names else ()
    return column, {
        "layer_scales": sg.layer_scales(found.gradient, stack_axis=stack_axis),
        "term_scales": sg.term_scales(found.term_grads),
        "term_alignment": {
            name: dict(zip(names, row, strict=True))
            for name, row in zip(names, cosines, strict=True)
        },
        "term_weights": found.term_weights,
    }


def assess(objective: Objective, params: Any, seed: jax.Array) -> dict[str, Any]:
    """How good a column is: errors, coefficients, terms and what these are made of.

    The terms are mean squares at uniform points that are drawn for this alone, without
    the weights that an optimizer may give them. Their sum is that of the objective.
    """
    key = jax.random.key(3000 + seed)
    points = objective.sample(key, objective.config.interior_points)
    predictions = solved.predict(objective, params, points)
    losses = objective.losses(predictions, points, objective.unknowns(params))
    return {
        "loss": weighted_sum(losses, objective.weights),
        "losses": losses,
        "errors": objective.errors(params),
        "unknowns": objective.unknowns(params),
        "squares": solved.squares(objective, params, predictions, points),
    }
