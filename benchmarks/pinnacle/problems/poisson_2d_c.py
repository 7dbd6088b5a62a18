"""Poisson 2d-C of PINNacle: Δu = 0, u = 1 on a square and 0 on four holes in it."""

from benchmarks.pinnacle.reference import solution
from examples.pinn.domains import Ball, Box, Difference
from examples.pinn.operators import laplacian
from examples.pinn.problems.problem import Condition, Problem, given

SQUARE = Box((-0.5, -0.5), (0.5, 0.5))
HOLES = [Ball((x, y), 0.1) for x in (-0.3, 0.3) for y in (-0.3, 0.3)]
DOMAIN = Difference(SQUARE, *HOLES)


def residual(points, laplacian):
    return laplacian


def in_square(points):
    return abs(points).max(axis=-1) < 0.499


PROBLEM = Problem(
    name="Poisson 2d-C",
    equation="Δu = 0",
    coordinates=("x", "y"),
    domain=DOMAIN,
    operators={"laplacian": laplacian(2)},
    residual=residual,
    conditions=(
        Condition("square", SQUARE.boundary(), given(u=1.0)),
        Condition("holes", DOMAIN.boundary(in_square)),
    ),
    exact=solution("poisson1_cg_data.dat", "u"),
    resolution=(101, 101),
)
