"""-u'' = π² sin(πx) on [-1, 1], u(±1) = 0; u = sin(πx). DeepXDE's first example."""

import jax.numpy as jnp
import numpy as np

from examples.pinn.operators import dd
from examples.pinn.problems.problem import Condition, Problem, box_faces, zero


def exact(points):
    return np.sin(np.pi * points[..., 0])


def residual(points, u, u_xx):
    return -u_xx - jnp.pi**2 * jnp.sin(jnp.pi * points[..., 0])


PROBLEM = Problem(
    name="poisson1d",
    equation="-u_xx = π² sin(πx)",
    coordinates=("x",),
    lower=(-1.0,),
    upper=(1.0,),
    operators={"u_xx": dd(1)},
    residual=residual,
    conditions=(Condition("boundary", box_faces((-1.0,), (1.0,)), zero),),
    exact=exact,
    resolution=(1001,),
)
