"""u_t + u u_x = ν u_xx with ν = 0.01/π; u(x, 0) = -sin(πx), u(±1, t) = 0.

x in [-1, 1], t in [0, 1]. The solution steepens to a shock at x = 0 of width ν.
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import d, dd
from examples.pinn.problems.problem import Condition, Problem, given

NU = 0.01 / np.pi
DOMAIN = Box((-1.0, 0.0), (1.0, 1.0))


def exact(points):
    """Cole–Hopf: a ratio of two integrals of a heat kernel, by Gauss–Hermite."""
    nodes, weights = np.polynomial.hermite.hermgauss(100)
    x, t = points[..., 0, None], points[..., 1, None]
    y = x - 2 * np.sqrt(NU * t) * nodes
    # The largest exponent is subtracted: it cancels in the ratio.
    density = weights * np.exp(-(np.cos(np.pi * y) + 1) / (2 * np.pi * NU))
    return -np.sum(density * np.sin(np.pi * y), -1) / np.sum(density, -1)


def initial(points):
    return -jnp.sin(jnp.pi * points[..., 0])


def residual(points, u, u_x, u_t, u_xx):
    return u_t + u * u_x - NU * u_xx


PROBLEM = Problem(
    name="burgers",
    equation="u_t + u u_x = ν u_xx",
    coordinates=("x", "t"),
    domain=DOMAIN,
    operators={"u_x": d(1, 0), "u_t": d(0, 1), "u_xx": dd(1, 0)},
    residual=residual,
    conditions=(
        Condition("initial", DOMAIN.face(1, 0.0), given(u=initial)),
        Condition("boundary", DOMAIN.faces((0, -1.0), (0, 1.0))),
    ),
    exact=exact,
    resolution=(256, 101),
)
