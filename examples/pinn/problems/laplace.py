"""Δu = 0 on the unit square, one warm side: u = sin(πx) on top, 0 on the others.

A plane has no residual: networks that satisfy the equation first stay at one.
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import laplacian
from examples.pinn.problems.problem import Condition, Problem, given

SQUARE = Box((0.0, 0.0), (1.0, 1.0))


def residual(points, laplacian):
    return laplacian


def warm(points):
    return jnp.sin(jnp.pi * points[:, 0])


def exact(points):
    x, y = points.T
    return np.sin(np.pi * x) * np.sinh(np.pi * y) / np.sinh(np.pi)


PROBLEM = Problem(
    name="laplace",
    equation="Δu = 0, one warm side",
    coordinates=("x", "y"),
    domain=SQUARE,
    operators={"laplacian": laplacian(2)},
    residual=residual,
    conditions=(
        Condition("top", SQUARE.face(1, 1.0), given(u=warm)),
        Condition("others", SQUARE.faces((0, 0.0), (0, 1.0), (1, 0.0))),
    ),
    exact=exact,
    resolution=(101, 101),
)
