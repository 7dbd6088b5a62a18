"""HInv of PINNacle: where heat is conducted, from noisy temperatures.

u_t = ∇·(a∇u) + f for the fields u and a(x, y), with a given on the boundary.
"""

import jax.numpy as jnp
import numpy as np

from benchmarks.pinnacle.reference import read
from examples.pinn.domains import Box, OverTime
from examples.pinn.operators import d, dd
from examples.pinn.problems.problem import Condition, Problem, given, measured

NOISE = 0.1
DOMAIN = OverTime(Box((-1.0, -1.0), (1.0, 1.0)), 0.0, 1.0)


def exact(points, xp=np):
    x, y, t = points.T
    bump = xp.sin(xp.pi * x) * xp.sin(xp.pi * y)
    return {"u": xp.exp(-t) * bump, "a": 2 + bump}


def source(points):
    x, y, t = points.T
    bump = jnp.sin(jnp.pi * x) * jnp.sin(jnp.pi * y)
    slopes = (jnp.cos(jnp.pi * x) * jnp.sin(jnp.pi * y)) ** 2
    slopes += (jnp.sin(jnp.pi * x) * jnp.cos(jnp.pi * y)) ** 2
    conducted = jnp.pi**2 * (slopes - 2 * (2 + bump) * bump)
    return jnp.exp(-t) * (-bump - conducted)


def residual(points, a, a_x, a_y, a_t, u_x, u_y, u_t, laplacian_u):
    conducted = a * laplacian_u + a_x * u_x + a_y * u_y
    return {"heat": u_t - conducted - source(points), "steady": a_t}


def values():
    points = read("heatinv_points.dat").T
    noise = np.random.default_rng(0).normal(scale=NOISE, size=len(points))
    return {"points": points, "u": exact(points)["u"] + noise}


PROBLEM = Problem(
    name="HInv",
    equation="u_t = ∇·(a∇u) + f",
    fields=("u", "a"),
    coordinates=("x", "y", "t"),
    domain=DOMAIN,
    operators={
        **{f"{field}_x": d(1, 0, 0)(field) for field in "ua"},
        **{f"{field}_y": d(0, 1, 0)(field) for field in "ua"},
        **{f"{field}_t": d(0, 0, 1)(field) for field in "ua"},
        "laplacian_u": (dd(1, 0, 0) + dd(0, 1, 0))("u"),
    },
    residual=residual,
    conditions=(
        measured("temperatures", values()),
        Condition("sides", DOMAIN.boundary(), given(a=lambda x: exact(x, jnp)["a"])),
    ),
    exact=exact,
    resolution=(41, 41, 11),
)
