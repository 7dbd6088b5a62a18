"""u_t + λ u u_x = ν u_xx with both coefficients unknown, from 2,000 values of u.

The values are those of `burgers` at scattered points, exact or with noise of 1 % of
their standard deviation. ν is positive, so its logarithm is trained. Raissi, Perdikaris
and Karniadakis, J. Comput. Phys. 378 (2019), section 4.1.1.
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.operators import d, dd
from examples.pinn.problems import burgers
from examples.pinn.problems.problem import Problem, measured

VALUES = 2000


def data(noise):
    rng = np.random.default_rng(0)
    points = rng.uniform(burgers.DOMAIN.lower, burgers.DOMAIN.upper, (VALUES, 2))
    u = burgers.exact(points)
    return {"points": points, "u": u + noise * u.std() * rng.normal(size=VALUES)}


def residual(points, u, u_x, u_t, u_xx, convection, log_nu):
    return u_t + convection * u * u_x - jnp.exp(log_nu) * u_xx


def problem(name, noise):
    return Problem(
        name=name,
        equation="u_t + λ u u_x = ν u_xx, λ and ν from values of u",
        coordinates=("x", "t"),
        domain=burgers.DOMAIN,
        operators={"u_x": d(1, 0), "u_t": d(0, 1), "u_xx": dd(1, 0)},
        residual=residual,
        conditions=(measured("values", data(noise)),),
        unknowns={"convection": 0.5, "log_nu": np.log(0.01)},
        exact_unknowns={"convection": 1.0, "log_nu": np.log(burgers.NU)},
        exact=burgers.exact,
        resolution=burgers.PROBLEM.resolution,
    )


PROBLEM = problem("burgers-inverse", noise=0.0)
NOISY = problem("burgers-inverse-noisy", noise=0.01)
