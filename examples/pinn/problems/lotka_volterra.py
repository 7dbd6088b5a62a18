"""Predator and prey over ten units of time, from 100 and 15 animals.

r' = 2 r - 0.04 r p and p' = 0.02 r p - 1.06 p.
"""

from examples.pinn.domains import Box
from examples.pinn.operators import d
from examples.pinn.problems.problem import Condition, Problem, given

TIME = Box((0.0,), (10.0,))
START = {"r": 100.0, "p": 15.0}


def rates(r, p):
    return 2 * r - 0.04 * r * p, 0.02 * r * p - 1.06 * p


def residual(points, r, p, r_t, p_t):
    prey, predator = rates(r, p)
    return {"prey": r_t - prey, "predator": p_t - predator}


def exact(points):
    # Imported here, as that takes a second, and every start imports this file.
    from scipy.integrate import solve_ivp

    options = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-10, "dense_output": True}
    start = list(START.values())
    found = solve_ivp(lambda t, y: rates(*y), (0, 10), start, **options)
    return dict(zip(START, found.sol(points[:, 0]), strict=True))


PROBLEM = Problem(
    name="lotka-volterra",
    equation="r' = 2 r - 0.04 r p, p' = 0.02 r p - 1.06 p",
    coordinates=("t",),
    domain=TIME,
    fields=tuple(START),
    operators={"r_t": d(1)("r"), "p_t": d(1)("p")},
    residual=residual,
    conditions=(Condition("start", TIME.face(0, 0.0), given(**START)),),
    exact=exact,
    resolution=(1001,),
)
