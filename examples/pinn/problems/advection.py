"""u_t + c u_x = 0 with periodic ends, c = 30; u = sin(x - c t).

x in [0, 2π], t in [0, 1]: the wave passes its own start almost five times. A known hard
case for PINNs: Krishnapriyan et al., NeurIPS 2021, section 3.
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import d
from examples.pinn.problems.problem import Condition, Problem, given, periodic

SPEED = 30.0
DOMAIN = Box((0.0, 0.0), (2 * np.pi, 1.0))


def residual(points, u_x, u_t):
    return u_t + SPEED * u_x


def initial(points):
    return jnp.sin(points[:, 0])


def exact(points):
    x, t = points.T
    return np.sin(x - SPEED * t)


PROBLEM = Problem(
    name="advection",
    equation="u_t + 30 u_x = 0",
    coordinates=("x", "t"),
    domain=DOMAIN,
    operators={"u_x": d(1, 0), "u_t": d(0, 1)},
    residual=residual,
    conditions=(
        Condition("initial", DOMAIN.face(1, 0.0), given(u=initial)),
        periodic("periodic", DOMAIN, 0, "u"),
    ),
    exact=exact,
    resolution=(128, 201),
)
