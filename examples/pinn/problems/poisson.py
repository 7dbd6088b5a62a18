"""Δu = f on [-1, 1]², u = 0 on the boundary; u = sin(πx) sin(πy)."""

import jax.numpy as jnp
import numpy as np

from examples.pinn.operators import laplacian
from examples.pinn.problems.problem import Condition, Problem, box_faces, zero

LOWER, UPPER = (-1.0, -1.0), (1.0, 1.0)


def exact(points):
    return np.prod(np.sin(np.pi * points), axis=-1)


def residual(points, u, laplacian):
    f = -2 * jnp.pi**2 * jnp.prod(jnp.sin(jnp.pi * points), axis=-1)
    return laplacian - f


PROBLEM = Problem(
    name="poisson",
    equation="Δu = f",
    coordinates=("x", "y"),
    lower=LOWER,
    upper=UPPER,
    operators={"laplacian": laplacian(2)},
    residual=residual,
    conditions=(Condition("boundary", box_faces(LOWER, UPPER), zero),),
    exact=exact,
    resolution=(101, 101),
)
