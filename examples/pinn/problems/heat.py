"""A template for an equation of your own: u_t = α u_xx, a rod that cools.

Copy this file, change what is below, and train it by `--problem my_equation.py`.
Operators are sums of d (first derivative along a direction), dd (second derivative) and
`laplacian`. Residuals take them by the names that are given to them here.
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import d, dd
from examples.pinn.problems.problem import Condition, Problem, given

ALPHA = 0.1
ROD = Box(lower=(0.0, 0.0), upper=(1.0, 1.0))  # of x and t


def residual(points, u_t, u_xx):
    return u_t - ALPHA * u_xx


def initial(points):
    return jnp.sin(jnp.pi * points[:, 0])


def exact(points):
    x, t = points.T
    return np.exp(-ALPHA * np.pi**2 * t) * np.sin(np.pi * x)


PROBLEM = Problem(
    name="heat",
    equation="u_t = α u_xx",
    coordinates=("x", "t"),
    domain=ROD,
    operators={"u_t": d(0, 1), "u_xx": dd(1, 0)},
    residual=residual,
    conditions=(
        Condition("initial", ROD.face(1, 0.0), given(u=initial)),
        Condition("boundary", ROD.faces((0, 0.0), (0, 1.0)), given(u=0.0)),
    ),
    exact=exact,
    resolution=(101, 101),
)
