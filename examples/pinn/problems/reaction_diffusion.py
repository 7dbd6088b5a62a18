"""u_t = 4 u_xx + 5 u (1 - u), periodic, from a bump on [0, 2π].

A function of t alone satisfies the equation and the ends, and networks stay at one. The
reference is spectral: reference/periodic.py.
"""

from pathlib import Path

import jax.numpy as jnp

from examples.pinn.domains import Box
from examples.pinn.operators import d, dd
from examples.pinn.problems.problem import (
    Condition,
    Problem,
    given,
    periodic,
    read_values,
)

DOMAIN = Box((0.0, 0.0), (2 * float(jnp.pi), 1.0))
REFERENCE = Path(__file__).with_name("reference") / "reaction_diffusion.npz"


def residual(points, u, u_t, u_xx):
    return u_t - 4 * u_xx - 5 * u * (1 - u)


def bump(points):
    return jnp.exp(-8 * (points[:, 0] / jnp.pi - 1) ** 2)


PROBLEM = Problem(
    name="reaction-diffusion",
    equation="u_t = 4 u_xx + 5 u (1 - u)",
    coordinates=("x", "t"),
    domain=DOMAIN,
    operators={"u_x": d(1, 0), "u_t": d(0, 1), "u_xx": dd(1, 0)},
    residual=residual,
    conditions=(
        Condition("initial", DOMAIN.face(1, 0.0), given(u=bump)),
        periodic("ends", DOMAIN, 0, "u", "u_x"),
    ),
    exact=read_values(REFERENCE),
    resolution=(128, 101),
)
