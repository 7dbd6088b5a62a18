"""Kovasznay flow: steady Navier-Stokes equations behind a grid, Re = 20.

u·∇u = -∇p + Δu / Re and ∇·u = 0 on [-0.5, 1] × [-0.5, 1.5]; velocity and pressure are
given on the boundary. Kovasznay, Proc. Cambridge Philos. Soc. 44 (1948).
"""

import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import d, laplacian
from examples.pinn.problems.problem import Condition, Problem

RE = 20.0
RATE = RE / 2 - np.sqrt(RE**2 / 4 + 4 * np.pi**2)
DOMAIN = Box((-0.5, -0.5), (1.0, 1.5))


def exact(points, xp=np):
    x, y = points.T
    wave = xp.exp(RATE * x)
    return {
        "u": 1 - wave * xp.cos(2 * np.pi * y),
        "v": RATE / (2 * np.pi) * wave * xp.sin(2 * np.pi * y),
        "p": (1 - wave**2) / 2,
    }


def on_boundary(points, u, v, p):
    solution = exact(points, jnp)
    return {"u": u - solution["u"], "v": v - solution["v"], "p": p - solution["p"]}


def residual(points, u, v, u_x, u_y, v_x, v_y, p_x, p_y, laplacian_u, laplacian_v):
    return {
        "momentum x": u * u_x + v * u_y + p_x - laplacian_u / RE,
        "momentum y": u * v_x + v * v_y + p_y - laplacian_v / RE,
        "continuity": u_x + v_y,
    }


PROBLEM = Problem(
    name="kovasznay",
    equation="(u·∇)u = -∇p + Δu / 20, ∇·u = 0",
    fields=("u", "v", "p"),
    coordinates=("x", "y"),
    domain=DOMAIN,
    operators={
        **{f"{field}_x": d(1, 0)(field) for field in "uvp"},
        **{f"{field}_y": d(0, 1)(field) for field in "uvp"},
        "laplacian_u": laplacian(2)("u"),
        "laplacian_v": laplacian(2)("v"),
    },
    residual=residual,
    conditions=(Condition("boundary", DOMAIN.boundary(), on_boundary),),
    exact=exact,
    resolution=(76, 101),
)
