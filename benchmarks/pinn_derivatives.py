"""What derivatives of a network cost, by each method that a user of JAX could take.

python -m benchmarks.pinn_derivatives [--problem kovasznay] [--out FILE.json]

A step is the value and the parameter gradient of the mean square of the residual. All
methods differentiate the same network at the same points in the same run, in random
order in each round. First, each has to reproduce the residual and the gradient that
nested forward mode gives in double precision. All but ours get the layers unrolled,
which suits them best; "nested jvp, scanned" shows by how much. A method whose package
is missing is left out.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks import common
from examples.common import pictures
from examples.pinn import operators
from examples.pinn.config import Config
from examples.pinn.objective import Objective
from examples.pinn.problems import kovasznay
from examples.pinn.problems.problem import Problem, names_taken

TOLERANCE = 1e-5
"""Of the residual and of the gradient, relative to their largest elements."""

Residual = Callable[[Any, jax.Array], Any]
"""Maps parameters and points of shape (n, 2) to arrays of shape (n,)."""


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """What derivatives of a network cost, by each method."""

    problem: Literal["poisson", "kovasznay"] = "poisson"
    """A Laplacian, or a system of three equations."""
    depth: int = 32
    """Hidden layers."""
    width: int = 64
    """Units of each hidden layer."""
    points: int = 4096
    """Collocation points."""
    rounds: int = 9
    """Timed steps for each method."""


def unrolled(problem: Problem, params: Any, x: jax.Array) -> jax.Array:
    """The fields of examples/pinn's network without a scan, at points (..., 2)."""
    first, last = params["params"]["first"], params["params"]["last"]
    hidden = params["params"].get("hidden", {"kernel": (), "bias": ()})
    lower, upper = jnp.asarray([problem.domain.lower, problem.domain.upper], x.dtype)
    x = math.sqrt(12) * (x - (lower + upper) / 2) / (upper - lower)
    x = x @ first["kernel"] + first["bias"]
    for kernel, bias in zip(hidden["kernel"], hidden["bias"], strict=True):
        x = jnp.tanh(x) @ kernel + bias
    return jnp.tanh(x) @ last["kernel"] + last["bias"]


def residuals_of(objective: Objective) -> dict[str, Residual]:
    """The residual by each method; "ours" is what the others are compared with."""
    problem, network = objective.problem, objective.network
    names = names_taken(problem.residual)
    sweep = operators.Sweep.of(problem.operators, problem.fields).only(names)
    fields_of = partial(unrolled, problem)

    def residual(points, found):
        return problem.residual(points, **{name: found[name] for name in names})

    def ours(params, points):
        return residual(points, network.apply(params, points, sweep))

    def scanned(params, x):
        fields: Any = network.apply(params, x[None])
        return jnp.concatenate([fields[name] for name in problem.fields])

    def nested(u, params, points):
        taken = dict(sweep.derivatives)
        found = operators.nested_derivatives(
            partial(u, params), points, taken, problem.fields
        )
        return residual(points, found)

    def by_laplacian(laplacian, params, points):
        u = partial(fields_of, params)
        found = {"u": u(points)[:, 0], "laplacian": laplacian(u, points)}
        return residual(points, found)

    others: dict[str, Residual] = {
        name: partial(by_laplacian, laplacian) for name, laplacian in LAPLACIANS.items()
    }
    if problem.name == "kovasznay":
        others = {"jinns": partial(jinns_kovasznay, fields_of)}
    return {
        "ours": ours,
        "nested jvp, scanned": partial(nested, scanned),
        "nested jvp": partial(nested, fields_of),
        **others,
    }


# --- What others have: the Laplacian of a network of one field, at all points ---


def hessian(u, points):
    at = jax.hessian(lambda x: u(x)[0])
    return jax.vmap(lambda x: jnp.trace(at(x)))(points)


def taylor_mode(u, points):
    from jax.experimental import jet  # which has no rule for scan

    def along(v):
        series = (jnp.broadcast_to(v, points.shape), jnp.zeros_like(points))
        return jet.jet(u, (points,), (series,))[1][1][:, 0]

    return jnp.sum(jax.vmap(along)(jnp.eye(2, dtype=points.dtype)), axis=0)


def folx(u, points):
    from folx import forward_laplacian

    at = forward_laplacian(lambda x: u(x)[0])
    return jax.vmap(lambda x: at(x).laplacian)(points)


def jinns_forward(u, points):
    from jinns.loss import laplacian_fwd

    return laplacian_fwd(points, lambda x, _: u(x), None, eq_type="PDEStatio")[:, 0]


def jinns_reverse(method, u, points):
    from jinns.loss import laplacian_rev

    def at(x):
        return laplacian_rev(x, lambda x, _: u(x)[0], None, method, "PDEStatio")

    return jax.vmap(at)(points)


def deepxde(mode, u, points):
    os.environ["DDE_BACKEND"] = "jax"  # read when DeepXDE is imported
    import deepxde as dde

    dde.config.autodiff = mode  # read by its operators
    u_xx, u_yy = (dde.grad.hessian((u(points), u), points, i=i, j=i) for i in (0, 1))
    dde.grad.clear()
    return (u_xx[0] + u_yy[0])[:, 0]


LAPLACIANS: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    "jax.hessian": hessian,
    "jax.experimental.jet": taylor_mode,
    "folx": folx,
    "jinns, fwd": jinns_forward,
    "jinns, trace_hessian_x": partial(jinns_reverse, "trace_hessian_x"),
    "jinns, loop": partial(jinns_reverse, "loop"),
    "DeepXDE, forward": partial(deepxde, "forward"),
    "DeepXDE, reverse": partial(deepxde, "reverse"),
}


def jinns_kovasznay(fields_of, params, points):
    """The operators of jinns, as its own loss of this equation combines them."""
    from jinns.loss import _operators as by_jinns

    def velocity(x, params):
        return fields_of(params, x)[:2]

    def at(x):
        convection = by_jinns._u_dot_nabla_times_u_rev(x, velocity, params)
        pressure = jax.jacrev(lambda x: fields_of(params, x)[2:])(x)[0]
        viscosity = by_jinns.vectorial_laplacian_rev(
            x, velocity, params, dim_out=2, eq_type="PDEStatio"
        )
        momentum = convection + pressure - viscosity / kovasznay.RE
        continuity = by_jinns.divergence_rev(x, velocity, params, eq_type="PDEStatio")
        return {
            "momentum x": momentum[0],
            "momentum y": momentum[1],
            "continuity": jnp.squeeze(continuity),
        }

    return jax.vmap(at)(points)


# --- Measuring ---


def value_and_gradient(residual: Residual, params: Any, points: jax.Array) -> Any:
    """The mean square of the residual, the residual, and the gradient."""

    def loss(params):
        zero = residual(params, points)
        return sum(jnp.mean(x**2) for x in jax.tree.leaves(zero)), zero

    return jax.value_and_grad(loss, has_aux=True)(params)


def in_double_precision(f: Callable[..., Any], *args: Any) -> Any:
    """The value of f at the same arguments in float64."""
    args = jax.tree.map(np.float64, args)
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(f)(*args))


def relative_error(tree: Any, exact: Any) -> float:
    """The largest deviation, relative to the largest element."""
    x, y = ravel_pytree(tree)[0], ravel_pytree(exact)[0]
    return float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y)))


def measure(config: Config, number: int, rounds: int) -> common.Found:
    """Of each method the error, the time to compile, and the times of its steps.

    The error is that of the residual or of the gradient, whichever is larger.
    """
    objective = Objective(config)
    points = objective.problem.domain.sample(jax.random.key(0), number, jnp.float32)
    residuals = residuals_of(objective)
    # Biases start at zero, which would hide a method that ignores them.
    params = jax.tree.map(
        lambda x: jnp.where(x == 0, 0.1, x), objective.initial_params(jax.random.key(1))
    )
    reference = partial(value_and_gradient, residuals["nested jvp"])
    (_, zero), gradient = in_double_precision(reference, params, points)

    def step_of(residual):
        jitted = jax.jit(partial(value_and_gradient, residual))
        jax.clear_caches()
        seconds, step = common.seconds_of(
            lambda: jitted.lower(params, points).compile()
        )
        (_, values), slope = step(params, points)
        errors = relative_error(values, zero), relative_error(slope, gradient)
        found = {"error": float(np.max(errors)), "compile_seconds": seconds}
        return found, partial(step, params, points)

    makers = {name: partial(step_of, residual) for name, residual in residuals.items()}
    return common.compare(makers, rounds)


def draw(found: common.Found, title: str, path: Path) -> None:
    """Horizontal bars: each method's time over ours."""
    over = common.ratios(found)
    names = sorted(over, key=lambda name: over[name][1])
    low, median, high = np.transpose([over[name] for name in names])
    figure, ax = plt.subplots(
        figsize=(7.5, 0.34 * len(names) + 1.5), layout="constrained"
    )
    colors = ["tab:blue" if name == "ours" else "silver" for name in names]
    ranges = (median - low, high - median)
    bars = ax.barh(names, median, color=colors, xerr=ranges, ecolor="dimgray")
    ax.bar_label(bars, fmt="{:.1f}×", padding=5)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12 * high.max())
    ax.set_xlabel("time of a step over ours, less is better")
    ax.set_title(title, fontsize=10)
    pictures.save(figure, path)


def main(options: Options) -> int:
    config = Config(
        Path(),
        problem=options.problem,
        depth=options.depth,
        width=options.width,
        units="none",  # those of the other packages' networks
    )
    # Accelerators default to less, which spoils second derivatives.
    with jax.default_matmul_precision("highest"):
        found = measure(config, options.points, options.rounds)
    title = (
        f"{config.find_problem().equation}, and its gradient\n{options.depth} tanh "
        f"layers of {options.width}, {options.points:,} points, float32"
    )
    common.show(title, found, compile_seconds=".1f", error=".1e")
    common.save(options, {"methods": found})
    if options.out is not None:
        machine = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
        draw(found, f"{title}, {machine}", options.out.with_suffix(".png"))
    # A NaN is wrong, too.
    failed = [x for x, y in found.items() if not y["error"] <= TOLERANCE]
    if failed:
        print(f"error: wrong derivatives: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    common.run(Options, main)
