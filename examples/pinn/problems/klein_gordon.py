"""u_tt - u_xx + u³ = f on [0, 1]², with u = x cos(5πt) + (xt)³.

Wang, Teng and Perdikaris, SIAM J. Sci. Comput. 43 (2021), section 4.2.
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import d, dd
from examples.pinn.problems.problem import Condition, Problem, given

DOMAIN = Box((0.0, 0.0), (1.0, 1.0))


def exact(points, xp=np):
    x, t = points.T
    return x * xp.cos(5 * xp.pi * t) + (x * t) ** 3


def residual(points, u, u_tt, u_xx):
    x, t = points.T
    wave = -((5 * jnp.pi) ** 2) * x * jnp.cos(5 * jnp.pi * t)
    f = wave + 6 * x * t * (x**2 - t**2) + exact(points, jnp) ** 3
    return u_tt - u_xx + u**3 - f


def prescribed(points):
    return exact(points, jnp)


PROBLEM = Problem(
    name="klein-gordon",
    equation="u_tt - u_xx + u³ = f",
    coordinates=("x", "t"),
    domain=DOMAIN,
    operators={"u_t": d(0, 1), "u_tt": dd(0, 1), "u_xx": dd(1, 0)},
    residual=residual,
    conditions=(
        Condition("initial", DOMAIN.face(1, 0.0), given(u=prescribed, u_t=0.0)),
        Condition("ends", DOMAIN.faces((0, 0.0), (0, 1.0)), given(u=prescribed)),
    ),
    exact=exact,
    resolution=(101, 101),
)
