"""u_tt = c² u_xx with fixed ends, from a position and a velocity.

`wave-velocity`: c = 1, two standing waves, one of which starts by its velocity.
`wave`: Wave 1d-C of PINNacle (Hao et al., 2306.08827), c = 2, from rest.
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import d, dd
from examples.pinn.problems.problem import Condition, Problem, given

DOMAIN = Box((0.0, 0.0), (1.0, 1.0))


def exact_velocity(points, xp=np):
    x, t = xp.pi * points.T
    return xp.sin(x) * xp.cos(t) / 2 + xp.sin(3 * x) * xp.sin(3 * t) / 3


def exact_rest(points, xp=np):
    x, t = xp.pi * points.T
    return xp.sin(x) * xp.cos(2 * t) + xp.sin(4 * x) * xp.cos(8 * t) / 2


def velocity(points):
    return jnp.pi * jnp.sin(3 * jnp.pi * points[:, 0])


def problem(name, speed, exact, velocity):
    def residual(points, u_tt, u_xx):
        return u_tt - speed**2 * u_xx

    def position(points):
        return exact(points, jnp)

    return Problem(
        name=name,
        equation=f"u_tt = {speed**2} u_xx",
        coordinates=("x", "t"),
        domain=DOMAIN,
        operators={"u_t": d(0, 1), "u_tt": dd(0, 1), "u_xx": dd(1, 0)},
        residual=residual,
        conditions=(
            Condition("initial", DOMAIN.face(1, 0.0), given(u=position, u_t=velocity)),
            Condition("ends", DOMAIN.faces((0, 0.0), (0, 1.0))),
        ),
        exact=exact,
        resolution=(101, 101),
    )


PROBLEM = problem("wave", 2, exact_rest, 0.0)
WITH_VELOCITY = problem("wave-velocity", 1, exact_velocity, velocity)
