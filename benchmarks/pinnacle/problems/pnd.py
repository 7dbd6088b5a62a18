"""PNd of PINNacle: a Poisson equation in the unit cube of five dimensions."""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import laplacian
from examples.pinn.problems.problem import Condition, Problem, given

DIMENSION = 5
CUBE = Box((0.0,) * DIMENSION, (1.0,) * DIMENSION)


def exact(points, xp=np):
    return xp.sum(xp.sin(np.pi / 2 * points), axis=-1)


def residual(points, laplacian):
    return laplacian + np.pi**2 / 4 * exact(points, jnp)


PROBLEM = Problem(
    name="PNd",
    equation="Δu = -π²/4 Σ sin(π x_i / 2)",
    coordinates=tuple(f"x{i + 1}" for i in range(DIMENSION)),
    domain=CUBE,
    operators={"laplacian": laplacian(DIMENSION)},
    residual=residual,
    conditions=(Condition("faces", CUBE.boundary(), given(u=lambda p: exact(p, jnp))),),
    exact=exact,
    resolution=(7,) * DIMENSION,
)
