"""HNd of PINNacle: a heat equation in the unit ball of five dimensions.

The flux through the sphere is given. The solution is exp(r² / 2 + t).
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Ball, OverTime
from examples.pinn.operators import Operator, d
from examples.pinn.problems.problem import Condition, Problem, flux, given

DIMENSION = 5
DOMAIN = OverTime(Ball((0.0,) * DIMENSION, 1.0), 0.0, 1.0)
AXES = np.eye(DIMENSION + 1)[:DIMENSION]
SLOPES = {f"u_x{i + 1}": d(*axis) for i, axis in enumerate(AXES)}


def exact(points, xp=np):
    return xp.exp((points[:, :-1] ** 2).sum(axis=-1) / 2 + points[:, -1])


def in_jax(points):
    return exact(points, jnp)


def residual(points, u_t, laplacian):
    square = (points[:, :-1] ** 2).sum(axis=-1)
    return u_t - laplacian / DIMENSION + square / DIMENSION * in_jax(points)


PROBLEM = Problem(
    name="HNd",
    equation="u_t = Δu / 5 - r²/5 exp(r²/2 + t)",
    coordinates=(*(f"x{i + 1}" for i in range(DIMENSION)), "t"),
    domain=DOMAIN,
    operators={
        "u_t": d(*np.eye(DIMENSION + 1)[-1]),
        "laplacian": Operator(
            np.zeros(DIMENSION + 1), np.diag([1.0] * DIMENSION + [0])
        ),
        **SLOPES,
    },
    residual=residual,
    conditions=(
        Condition("start", DOMAIN.at(0.0), given(u=in_jax)),
        Condition("sphere", DOMAIN.boundary(), flux(DOMAIN, tuple(SLOPES), in_jax)),
    ),
    exact=exact,
    resolution=(7,) * (DIMENSION + 1),
)
