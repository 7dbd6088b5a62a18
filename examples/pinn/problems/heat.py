"""How to add an equation of your own: u_t = α u_xx, a rod that cools.

Copy this file, change what is below, and add its PROBLEM to those in __init__.py.
Operators are sums of d (first derivative along a direction), dd (second derivative) and
`laplacian`. The residual takes them by the names that are given to them here.
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.operators import d, dd
from examples.pinn.problems.problem import Condition, Problem

ALPHA = 0.1


def residual(points, u, u_t, u_xx):
    return u_t - ALPHA * u_xx


PROBLEM = Problem(
    name="heat",
    equation="u_t = α u_xx",
    coordinates=("x", "t"),
    lower=(0.0, 0.0),
    upper=(1.0, 1.0),
    operators={"u_t": d(0, 1), "u_xx": dd(1, 0)},
    residual=residual,
    conditions=(
        Condition("initial", ((1, 0.0),), lambda p: jnp.sin(jnp.pi * p[..., 0])),
        Condition("boundary", ((0, 0.0), (0, 1.0))),
    ),
    exact=lambda p: np.exp(-ALPHA * np.pi**2 * p[..., 1]) * np.sin(np.pi * p[..., 0]),
    resolution=(101, 101),
)
