"""NS 2d-CG of PINNacle: flow over a backward-facing step; ν = 0.01."""

from benchmarks.pinnacle.problems.ns_2d_c import FLOW, residual
from benchmarks.pinnacle.reference import solution
from examples.pinn.domains import Box, Union
from examples.pinn.problems.problem import Condition, Problem, given

ENTRY = Box((0.0, 0.0), (4.0, 1.0))
EXIT = Box((2.0, 0.0), (4.0, 2.0))
DOMAIN = Union(ENTRY, EXIT)


def inflow(points):
    y = points[:, 1]
    return 4 * y * (1 - y)


def on_wall(points):
    x = points[:, 0]
    return (x > 1e-4) & (x < 4 - 1e-4)


PROBLEM = Problem(
    name="NS 2d-CG",
    equation="(u·∇)u = -∇p + 0.01 Δu, ∇·u = 0",
    fields=("u", "v", "p"),
    coordinates=("x", "y"),
    domain=DOMAIN,
    operators=FLOW,
    residual=residual,
    conditions=(
        Condition("inlet", ENTRY.face(0, 0.0), given(u=inflow, v=0.0)),
        Condition("walls", DOMAIN.boundary(on_wall), given(u=0.0, v=0.0)),
        Condition("outlet", EXIT.face(0, 4.0), given(p=0.0)),
    ),
    exact=solution("ns_0_obstacle.dat", "u", "v", "p"),
    resolution=(101, 51),
)
