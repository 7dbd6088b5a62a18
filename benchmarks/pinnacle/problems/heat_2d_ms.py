"""Heat 2d-MS of PINNacle: diffusion that is slow along x and fast along y.

u_t = u_xx / (500π)² + u_yy / π², with twenty half waves along x at the start.
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box, OverTime
from examples.pinn.operators import d, dd
from examples.pinn.problems.problem import Condition, Problem, given

DOMAIN = OverTime(Box((0.0, 0.0), (1.0, 1.0)), 0.0, 5.0)


def start(points, xp=jnp):
    x, y = points[:, 0], points[:, 1]
    return xp.sin(20 * np.pi * x) * xp.sin(np.pi * y)


def exact(points):
    return start(points, np) * np.exp(-(0.04**2 + 1) * points[:, 2])


def residual(points, u_t, diffusion):
    return u_t - diffusion


PROBLEM = Problem(
    name="Heat 2d-MS",
    equation="u_t = u_xx / (500π)² + u_yy / π²",
    coordinates=("x", "y", "t"),
    domain=DOMAIN,
    operators={
        "u_t": d(0, 0, 1),
        "diffusion": (500 * np.pi) ** -2 * dd(1, 0, 0) + np.pi**-2 * dd(0, 1, 0),
    },
    residual=residual,
    conditions=(
        Condition("start", DOMAIN.at(0.0), given(u=start)),
        Condition("sides", DOMAIN.boundary()),
    ),
    exact=exact,
    resolution=(101, 21, 11),
)
