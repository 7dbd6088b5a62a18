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
from collections.abc import Callable, Mapping
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
from examples.pinn.objective import network_of
from examples.pinn.problems import kovasznay
from examples.pinn.problems.problem import Problem, names_taken

TOLERANCE = 1e-5
"""Of the residual and of the gradient, relative to their largest elements."""


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


Network = Callable[[jax.Array], jax.Array]
"""Maps points of shape (..., 2) to fields of shape (..., number of fields)."""
Residual = Callable[[Any, jax.Array], Any]
"""Maps parameters and points of shape (n, 2) to arrays of shape (n,)."""


def layers(params: Any) -> list[tuple[jax.Array, jax.Array]]:
    """Kernel and bias of each layer."""
    tree = params["params"]
    hidden = tree.get("hidden", {"kernel": (), "bias": ()})
    return [
        (tree["first"]["kernel"], tree["first"]["bias"]),
        *zip(hidden["kernel"], hidden["bias"], strict=True),
        (tree["last"]["kernel"], tree["last"]["bias"]),
    ]


def unrolled(problem: Problem, params: Any, x: jax.Array) -> jax.Array:
    """The fields without a scan, at points of shape (..., 2)."""
    (kernel, bias), *rest = layers(params)
    # DeepNetwork standardises coordinates.
    lower, upper = jnp.asarray([problem.domain.lower, problem.domain.upper], x.dtype)
    x = math.sqrt(12) * (x - (lower + upper) / 2) / (upper - lower) @ kernel + bias
    for kernel, bias in rest:
        x = jnp.tanh(x) @ kernel + bias
    return x


def residuals_of(config: Config) -> dict[str, Residual]:
    """The residual by each method; "ours" is what the others are compared with."""
    problem, network = config.find_problem(), network_of(config)
    whole = operators.Sweep.of(problem.operators, problem.fields)
    sweep = whole.only(names_taken(problem.residual))

    def residual(points, found):
        taken = {name: found[name] for name in names_taken(problem.residual)}
        return problem.residual(points, **taken)

    def ours(params, points):
        return residual(points, network.apply(params, points, sweep))

    def scanned(params, x):
        fields: Any = network.apply(params, x[None])
        return jnp.concatenate([fields[name] for name in problem.fields])

    def nested(u, params, points):
        found = operators.nested_derivatives(
            partial(u, params), points, dict(sweep.derivatives), problem.fields
        )
        return residual(points, found)

    def by_laplacian(laplacian, params, points):
        u = partial(unrolled, problem, params)
        found = {"u": u(points)[:, 0], "laplacian": laplacian(u, points)}
        return residual(points, found)

    own: dict[str, Residual] = {
        "ours": ours,
        "nested jvp, scanned": partial(nested, scanned),
        "nested jvp": partial(nested, partial(unrolled, problem)),
    }
    if problem.name == "kovasznay":
        return own | {"jinns": partial(jinns_kovasznay, problem)}
    return own | {name: partial(by_laplacian, f) for name, f in LAPLACIANS.items()}


# --- What others have: the Laplacian of a network with one field ---


def hessian(u: Network, points: jax.Array) -> jax.Array:
    """The trace of jax.hessian."""
    at = jax.hessian(lambda x: u(x)[0])
    return jax.vmap(lambda x: jnp.trace(at(x)))(points)


def taylor_mode(u: Network, points: jax.Array) -> jax.Array:
    """The second Taylor coefficient along each axis; jet has no rule for scan."""
    from jax.experimental import jet

    def along(v):
        series = (jnp.broadcast_to(v, points.shape), jnp.zeros_like(points))
        _, (_, second) = jet.jet(u, (points,), (series,))
        return second[:, 0]

    return jnp.sum(jax.vmap(along)(jnp.eye(2, dtype=points.dtype)), axis=0)


def forward_laplacian(u: Network, points: jax.Array) -> jax.Array:
    """The forward Laplacian of folx, which interprets the network's jaxpr."""
    import folx

    at = folx.forward_laplacian(lambda x: u(x)[0])
    return jax.vmap(lambda x: at(x).laplacian)(points)


def jinns_forward(u: Network, points: jax.Array) -> jax.Array:
    """The operator of jinns that takes all points at once."""
    import jinns

    def of_params(points, params):
        return u(points)

    return jinns.loss.laplacian_fwd(points, of_params, None, eq_type="PDEStatio")[:, 0]


def jinns_reverse(method: str, u: Network, points: jax.Array) -> jax.Array:
    """The operator of jinns that takes a single point."""
    import jinns

    def at(x):
        return jinns.loss.laplacian_rev(
            x, lambda x, params: u(x)[0], None, method, "PDEStatio"
        )

    return jax.vmap(at)(points)


def deepxde(mode: str, u: Network, points: jax.Array) -> jax.Array:
    """The operators of DeepXDE, by one of its modes of differentiation."""
    os.environ["DDE_BACKEND"] = "jax"  # read when DeepXDE is imported
    import deepxde as dde

    dde.config.autodiff = mode  # read by its operators
    u_xx, u_yy = (dde.grad.hessian((u(points), u), points, i=i, j=i) for i in (0, 1))
    dde.grad.clear()
    return (u_xx[0] + u_yy[0])[:, 0]


LAPLACIANS: dict[str, Callable[[Network, jax.Array], jax.Array]] = {
    "jax.hessian": hessian,
    "jax.experimental.jet": taylor_mode,
    "folx": forward_laplacian,
    "jinns, fwd": jinns_forward,
    "jinns, trace_hessian_x": partial(jinns_reverse, "trace_hessian_x"),
    "jinns, loop": partial(jinns_reverse, "loop"),
    "DeepXDE, forward": partial(deepxde, "forward"),
    "DeepXDE, reverse": partial(deepxde, "reverse"),
}


def jinns_kovasznay(problem: Problem, params: Any, points: jax.Array) -> Any:
    """The operators of jinns, as its own loss of this equation combines them."""
    from jinns.loss import _operators as by_jinns

    def velocity(x, params):
        return unrolled(problem, params, x)[:2]

    def at(x):
        convection = by_jinns._u_dot_nabla_times_u_rev(x, velocity, params)
        pressure = jax.jacrev(lambda x: unrolled(problem, params, x)[2:])(x)[0]
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


def inputs(config: Config, number: int) -> tuple[Any, jax.Array]:
    """Parameters, and points of shape (number, 2)."""
    points = config.find_problem().domain.sample(jax.random.key(0), number, jnp.float32)
    return network_of(config).init(jax.random.key(1), points[:1]), points


def value_and_gradient(residual: Residual, params: Any, points: jax.Array) -> Any:
    """The mean square of the residual, the residual, and the gradient."""

    def loss(params):
        zero = residual(params, points)
        return sum(jnp.mean(x**2) for x in jax.tree.leaves(zero)), zero

    return jax.value_and_grad(loss, has_aux=True)(params)


def in_double_precision(f: Callable[..., Any], *args: Any) -> Any:
    """The value of f at the same arguments in float64."""
    args = jax.tree.map(np.asarray, args)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), args)
        return jax.tree.map(np.asarray, jax.jit(f)(*wide))


def relative_error(tree: Any, exact: Any) -> float:
    """The largest deviation, relative to the largest element."""
    x, y = ravel_pytree(tree)[0], ravel_pytree(exact)[0]
    return float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y)))


def measure(
    residuals: Mapping[str, Residual], params: Any, points: jax.Array, rounds: int
) -> dict[str, dict[str, Any]]:
    """Of each method the error, the time to compile, and the times of its steps.

    The error is that of the residual or of the gradient, whichever is larger.
    """
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

    return common.compare(
        {name: partial(step_of, residual) for name, residual in residuals.items()},
        rounds,
    )


def draw(found: common.Found, title: str, path: Path) -> None:
    """Horizontal bars: each method's time over ours."""
    over = common.ratios(found)
    names = sorted(over, key=lambda name: over[name][1])
    low, median, high = np.transpose([over[name] for name in names])
    figure, ax = plt.subplots(
        figsize=(7.5, 0.34 * len(names) + 1.5), layout="constrained"
    )
    bars = ax.barh(
        names,
        median,
        color=["tab:blue" if name == "ours" else "silver" for name in names],
        xerr=(median - low, high - median),
        error_kw={"elinewidth": 1, "ecolor": "dimgray"},
    )
    ax.bar_label(bars, fmt="{:.1f}×", padding=5)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12 * high.max())
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("time of a step over ours, less is better")
    ax.set_title(title, fontsize=10)
    pictures.save(figure, path)


def main(options: Options) -> int:
    config = Config(
        Path(), problem=options.problem, depth=options.depth, width=options.width
    )
    params, points = inputs(config, options.points)
    # Accelerators default to less, which spoils second derivatives.
    with jax.default_matmul_precision("highest"):
        found = measure(residuals_of(config), params, points, options.rounds)
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
