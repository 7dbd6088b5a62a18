"""u_t = 15 Δu on a plate at 0 degrees whose top is at 100; its corners do not agree.

After a hundredth of a unit of time the plate is at rest.
"""

import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import d, dd
from examples.pinn.problems.problem import Condition, Problem, given

DIFFUSIVITY = 15.0
HOT = 100.0
MODES = 40
DOMAIN = Box((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def residual(points, u_t, laplacian):
    return u_t - DIFFUSIVITY * laplacian


def exact(points):
    """The sine series of the plate at rest, without what has not decayed yet.

    Its forty frequencies of a coordinate are enough from t = 0.002 on.
    """
    x, y, t = points.T
    u = np.zeros(len(points))
    for n in range(1, 200, 2):
        # sinh(nπy) / sinh(nπ), without overflow
        profile = np.exp(n * np.pi * (y - 1)) * np.expm1(-2 * n * np.pi * y)
        profile /= np.expm1(-2 * n * np.pi)
        if n < MODES:
            for m in range(1, MODES):
                size = 2 * m * (-1) ** (m + 1) / (np.pi * (n**2 + m**2))
                decay = np.exp(-DIFFUSIVITY * np.pi**2 * (n**2 + m**2) * t)
                profile -= size * decay * np.sin(m * np.pi * y)
        u += 4 / (n * np.pi) * np.sin(n * np.pi * x) * profile
    top = (y == 1) & (x > 0) & (x < 1)
    return HOT * np.where(top, 1.0, np.where(t == 0, 0.0, u))


PROBLEM = Problem(
    name="hot-plate",
    equation="u_t = 15 Δu, hot on top",
    coordinates=("x", "y", "t"),
    domain=DOMAIN,
    operators={"u_t": d(0, 0, 1), "laplacian": dd(1, 0, 0) + dd(0, 1, 0)},
    residual=residual,
    conditions=(
        Condition("initial", DOMAIN.face(2, 0.0)),
        Condition("top", DOMAIN.face(1, 1.0), given(u=HOT)),
        Condition("others", DOMAIN.faces((0, 0.0), (0, 1.0), (1, 0.0))),
    ),
    exact=exact,
    resolution=(31, 31, 11),
)
