"""-Δu = 1 on an L-shape, insulated on the left (∂u/∂x = 0), u = 0 on its other sides.

At the reentrant corner in the origin u grows like r^(2/3), so its gradient is infinite
there. The sides next to it are a term of their own: more points, and the same scale as
the other terms. The reference is by finite differences: reference/l_shape.py.
"""

from itertools import pairwise
from pathlib import Path

from examples.pinn.domains import Box, Union, segments
from examples.pinn.operators import d, laplacian
from examples.pinn.problems.problem import Condition, Problem, given, read_values

CORNERS = ((-1, -1), (0, -1), (0, 0), (1, 0), (1, 1), (-1, 1))
NEXT_TO_CORNER = (((0, -0.25), (0, 0)), ((0, 0), (0.25, 0)))
REFERENCE = Path(__file__).with_name("reference") / "l_shape.npz"


def residual(points, laplacian):
    return laplacian + 1


PROBLEM = Problem(
    name="l-shape",
    equation="-Δu = 1 on an L-shape",
    coordinates=("x", "y"),
    domain=Union(Box((-1.0, -1.0), (0.0, 1.0)), Box((0.0, 0.0), (1.0, 1.0))),
    operators={"u_x": d(1, 0), "laplacian": laplacian(2)},
    residual=residual,
    conditions=(
        Condition("fixed", segments(*pairwise(CORNERS))),
        Condition("corner", segments(*NEXT_TO_CORNER)),
        Condition("insulated", segments((CORNERS[-1], CORNERS[0])), given(u_x=0.0)),
    ),
    exact=read_values(REFERENCE),
    resolution=(101, 101),
)
