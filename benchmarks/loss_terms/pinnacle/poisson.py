"""Poisson 2d-C of PINNacle: Δu = 0, u = 1 on a square and 0 on four holes in it."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from examples.pinn.domains import Box
from examples.pinn.operators import laplacian
from examples.pinn.problems.problem import Condition, Problem, given

CENTRES = tuple((x, y) for x in (-0.3, 0.3) for y in (-0.3, 0.3))
RADIUS = 0.1
SQUARE = Box((-0.5, -0.5), (0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Perforated:
    """The square without its holes."""

    lower = SQUARE.lower
    upper = SQUARE.upper

    def contains(self, points):
        xp = np if isinstance(points, np.ndarray) else jnp
        distances = points[..., None, :] - xp.asarray(CENTRES, points.dtype)
        return (xp.sum(distances**2, axis=-1) >= RADIUS**2 - 1e-6).all(axis=-1)

    def sample(self, key, number, dtype):
        """A point in a hole is drawn anew, at most seven times: one in 10^7 stays."""
        points = SQUARE.sample(key, number, dtype)
        for i in range(7):
            new = SQUARE.sample(jax.random.fold_in(key, i), number, dtype)
            points = jnp.where(self.contains(points)[:, None], points, new)
        return points


def circles(key, number, dtype):
    hole_key, angle_key = jax.random.split(key)
    centre = jax.random.choice(hole_key, jnp.asarray(CENTRES, dtype), (number,))
    angle = 2 * jnp.pi * jax.random.uniform(angle_key, (number,), dtype)
    return centre + RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def residual(points, laplacian):
    return laplacian


def reference():
    file = Path(os.environ["PINNACLE_REFERENCE"]) / "poisson1_cg_data.dat"
    x, y, u = np.loadtxt(file, comments="%").T
    return {"points": np.stack([x, y], axis=-1), "u": u}


PROBLEM = Problem(
    name="Poisson 2d-C",
    equation="Δu = 0",
    coordinates=("x", "y"),
    domain=Perforated(),
    operators={"laplacian": laplacian(2)},
    residual=residual,
    conditions=(
        Condition("square", SQUARE.boundary(), given(u=1.0)),
        Condition("holes", circles),
    ),
    exact=reference(),
    resolution=(101, 101),
)
