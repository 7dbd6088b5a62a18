"""Poisson 2d-CG of PINNacle: -Δu + 64 u = f on a square with four holes."""

import jax.numpy as jnp

from benchmarks.pinnacle.reference import solution
from examples.pinn.domains import Ball, Box, Difference
from examples.pinn.operators import laplacian
from examples.pinn.problems.problem import Condition, Problem, given

SQUARE = Box((-1.0, -1.0), (1.0, 1.0))
HOLES = (
    Ball((0.5, 0.5), 0.2),
    Ball((0.4, -0.4), 0.4),
    Ball((-0.2, -0.7), 0.1),
    Ball((-0.6, 0.5), 0.3),
)
DOMAIN = Difference(SQUARE, *HOLES)


def residual(points, u, laplacian):
    x, y = points.T
    waves = jnp.sin(jnp.pi * x) * jnp.sin(4 * jnp.pi * y)
    return -laplacian + 64 * u - 10 * (17 + x**2 + y**2) * waves


def in_square(points):
    return abs(points).max(axis=-1) < 0.999


PROBLEM = Problem(
    name="Poisson 2d-CG",
    equation="-Δu + 64 u = 10 (17 + x² + y²) sin(πx) sin(4πy)",
    coordinates=("x", "y"),
    domain=DOMAIN,
    operators={"laplacian": laplacian(2)},
    residual=residual,
    conditions=(
        Condition("square", SQUARE.boundary(), given(u=0.2)),
        Condition("holes", DOMAIN.boundary(in_square), given(u=1.0)),
    ),
    exact=solution("poisson_boltzmann2d.dat", "u"),
    resolution=(101, 101),
)
