"""Poisson's equation on [-1, 1]², and on [-1, 1]; u = 0 on the boundary.

In two dimensions Δu = f with u = sin(πx) sin(πy). In one, DeepXDE's first example,
-u'' = π² sin(πx) with u = sin(πx).
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import dd, laplacian
from examples.pinn.problems.problem import Condition, Problem

SQUARE = Box((-1.0, -1.0), (1.0, 1.0))
INTERVAL = Box((-1.0,), (1.0,))


def exact(points):
    return np.prod(np.sin(np.pi * points), axis=-1)


def residual(points, u, laplacian):
    f = -2 * jnp.pi**2 * jnp.prod(jnp.sin(jnp.pi * points), axis=-1)
    return laplacian - f


def residual_1d(points, u, u_xx):
    return -u_xx - jnp.pi**2 * jnp.sin(jnp.pi * points[..., 0])


PROBLEM = Problem(
    name="poisson",
    equation="Δu = f",
    coordinates=("x", "y"),
    domain=SQUARE,
    operators={"laplacian": laplacian(2)},
    residual=residual,
    conditions=(Condition("boundary", SQUARE.boundary()),),
    exact=exact,
    resolution=(101, 101),
)

PROBLEM_1D = Problem(
    name="poisson1d",
    equation="-u_xx = π² sin(πx)",
    coordinates=("x",),
    domain=INTERVAL,
    operators={"u_xx": dd(1)},
    residual=residual_1d,
    conditions=(Condition("boundary", INTERVAL.boundary()),),
    exact=exact,
    resolution=(1001,),
)
