"""PInv of PINNacle: a coefficient a(x, y) from noisy values of u.

-∇·(a∇u) = f, with a given on the boundary. The benchmark's own f has 2x + 1 and 2y + 1
for 2x - 1 and 2y - 1, so that its solution does not solve its equation; here it does.
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import d, laplacian
from examples.pinn.problems.problem import Condition, Problem, given, measured

NOISE = 0.1
SQUARE = Box((0.0, 0.0), (1.0, 1.0))


def exact(points, xp=np):
    x, y = points.T
    far = x**2 + y**2 + (x - 1) ** 2 + (y - 1) ** 2
    return {"u": xp.sin(xp.pi * x) * xp.sin(xp.pi * y), "a": 1 / (1 + far)}


def source(points):
    x, y = points.T
    u, a = exact(points, jnp).values()
    along = (2 * x - 1) * jnp.cos(jnp.pi * x) * jnp.sin(jnp.pi * y)
    along += (2 * y - 1) * jnp.sin(jnp.pi * x) * jnp.cos(jnp.pi * y)
    return 2 * jnp.pi**2 * a * u + 2 * jnp.pi * a**2 * along


def residual(points, a, a_x, a_y, u_x, u_y, laplacian_u):
    return a * laplacian_u + a_x * u_x + a_y * u_y + source(points)


def values():
    axis = np.linspace(0, 1, 50)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    noise = np.random.default_rng(0).normal(scale=NOISE, size=len(points))
    return {"points": points, "u": exact(points)["u"] + noise}


PROBLEM = Problem(
    name="PInv",
    equation="-∇·(a∇u) = f",
    fields=("u", "a"),
    coordinates=("x", "y"),
    domain=SQUARE,
    operators={
        **{f"{field}_x": d(1, 0)(field) for field in "ua"},
        **{f"{field}_y": d(0, 1)(field) for field in "ua"},
        "laplacian_u": laplacian(2)("u"),
    },
    residual=residual,
    conditions=(
        measured("values", values()),
        Condition("sides", SQUARE.boundary(), given(a=lambda x: exact(x, jnp)["a"])),
    ),
    exact=exact,
    resolution=(50, 50),
)
