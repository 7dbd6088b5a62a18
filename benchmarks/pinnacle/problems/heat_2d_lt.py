"""Heat 2d-LT of PINNacle: a nonlinear source that varies over a long time."""

import jax.numpy as jnp
import numpy as np

from benchmarks.pinnacle.reference import read
from examples.pinn.domains import Box, OverTime
from examples.pinn.operators import d, dd
from examples.pinn.problems.problem import Condition, Problem, given

DOMAIN = OverTime(Box((0.0, 0.0), (1.0, 1.0)), 0.0, 100.0)


def start(points):
    x, y, _ = points.T
    return jnp.sin(4 * jnp.pi * x) * jnp.sin(3 * jnp.pi * y)


def residual(points, u, u_t, laplacian):
    x, y, t = points.T
    place = jnp.sin(4 * jnp.pi * x) * jnp.sin(2 * jnp.pi * y)
    source = 5 * jnp.sin(u**2) * (1 + 2 * jnp.sin(jnp.pi * t / 4)) * place
    return u_t - 0.001 * laplacian - source


def reference():
    x, y, *u = read("heat_longtime.dat")
    times = np.linspace(0, 100, len(u))
    points = [np.stack([x, y, np.full(len(x), t)], axis=-1) for t in times]
    return {"points": np.concatenate(points), "u": np.concatenate(u)}


PROBLEM = Problem(
    name="Heat 2d-LT",
    equation="u_t = 0.001 Δu + 5 sin(u²) f(x, y, t)",
    coordinates=("x", "y", "t"),
    domain=DOMAIN,
    operators={"u_t": d(0, 0, 1), "laplacian": dd(1, 0, 0) + dd(0, 1, 0)},
    residual=residual,
    conditions=(
        Condition("start", DOMAIN.at(0.0), given(u=start)),
        Condition("sides", DOMAIN.boundary()),
    ),
    exact=reference(),
    resolution=(41, 41, 101),
)
