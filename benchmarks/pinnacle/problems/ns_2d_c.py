"""NS 2d-C of PINNacle: flow in a square whose lid moves by 4x(1 - x); ν = 0.01."""

import jax.numpy as jnp

from benchmarks.pinnacle.reference import solution
from examples.pinn.domains import Box
from examples.pinn.operators import d, laplacian
from examples.pinn.problems.problem import Condition, Problem, given

NU = 0.01
SQUARE = Box((0.0, 0.0), (1.0, 1.0))
FLOW = {
    **{f"{field}_x": d(1, 0)(field) for field in "uvp"},
    **{f"{field}_y": d(0, 1)(field) for field in "uvp"},
    "laplacian_u": laplacian(2)("u"),
    "laplacian_v": laplacian(2)("v"),
}
"""The derivatives in the equations."""


def residual(points, u, v, u_x, u_y, v_x, v_y, p_x, p_y, laplacian_u, laplacian_v):
    return {
        "momentum x": u * u_x + v * u_y + p_x - NU * laplacian_u,
        "momentum y": u * v_x + v * v_y + p_y - NU * laplacian_v,
        "continuity": u_x + v_y,
    }


def lid(points):
    x = points[:, 0]
    return 4 * x * (1 - x)


def corner(key, number, dtype):
    return jnp.zeros((number, 2), dtype)


PROBLEM = Problem(
    name="NS 2d-C",
    equation="(u·∇)u = -∇p + 0.01 Δu, ∇·u = 0",
    fields=("u", "v", "p"),
    coordinates=("x", "y"),
    domain=SQUARE,
    operators=FLOW,
    residual=residual,
    conditions=(
        Condition("lid", SQUARE.face(1, 1.0), given(u=lid, v=0.0)),
        Condition(
            "walls",
            SQUARE.faces((0, 0.0), (0, 1.0), (1, 0.0)),
            given(u=0.0, v=0.0),
        ),
        Condition("corner", corner, given(p=0.0)),
    ),
    exact=solution("lid_driven_a4.dat", "u", "v", "p"),
    resolution=(101, 101),
)
