"""Δu + k²u = q on [-1, 1]², u = 0 on the boundary; u = sin(πx) sin(4πy), k = 1.

Wang, Teng and Perdikaris, SIAM J. Sci. Comput. 43 (2021), section 2.2.
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import laplacian
from examples.pinn.problems.problem import Condition, Problem

SQUARE = Box((-1.0, -1.0), (1.0, 1.0))
FREQUENCIES = np.pi * np.array([1.0, 4.0])
K = 1.0


def exact(points):
    return np.prod(np.sin(FREQUENCIES * points), axis=-1)


def residual(points, u, laplacian):
    frequencies = jnp.asarray(FREQUENCIES, points.dtype)
    solution = jnp.prod(jnp.sin(frequencies * points), axis=-1)
    q = (K**2 - jnp.sum(frequencies**2)) * solution
    return laplacian + K**2 * u - q


PROBLEM = Problem(
    name="helmholtz",
    equation="Δu + k²u = q",
    coordinates=("x", "y"),
    domain=SQUARE,
    operators={"laplacian": laplacian(2)},
    residual=residual,
    conditions=(Condition("boundary", SQUARE.boundary()),),
    exact=exact,
    resolution=(100, 100),
)
