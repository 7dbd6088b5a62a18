"""u_t = 0.0001 u_xx - 5 u³ + 5 u on [-1, 1], periodic, from x² cos(πx).

A known hard case: networks stay at u = 0 at first. Raissi, Perdikaris and Karniadakis,
J. Comput. Phys. 378 (2019), section 3.2. The reference is spectral:
reference/periodic.py.
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

DOMAIN = Box((-1.0, 0.0), (1.0, 1.0))
REFERENCE = Path(__file__).with_name("reference") / "allen_cahn.npz"


def residual(points, u, u_t, u_xx):
    return u_t - 1e-4 * u_xx + 5 * u**3 - 5 * u


def initial(points):
    x = points[:, 0]
    return x**2 * jnp.cos(jnp.pi * x)


PROBLEM = Problem(
    name="allen-cahn",
    equation="u_t = 0.0001 u_xx - 5 u³ + 5 u",
    coordinates=("x", "t"),
    domain=DOMAIN,
    operators={"u_x": d(1, 0), "u_t": d(0, 1), "u_xx": dd(1, 0)},
    residual=residual,
    conditions=(
        Condition("initial", DOMAIN.face(1, 0.0), given(u=initial)),
        periodic("ends", DOMAIN, 0, "u", "u_x"),
    ),
    exact=read_values(REFERENCE),
    resolution=(201, 101),
)
