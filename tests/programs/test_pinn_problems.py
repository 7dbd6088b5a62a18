"""The exact solutions solve the equations and meet the conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pinn.operators import nested_derivatives
from examples.pinn.problems import PROBLEMS

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Solutions as JAX functions of one point; Burgers' is tested by itself.
SOLUTIONS = {
    "poisson": lambda p: jnp.sin(jnp.pi * p[0]) * jnp.sin(jnp.pi * p[1]),
    "poisson1d": lambda p: jnp.sin(jnp.pi * p[0]),
    "helmholtz": lambda p: jnp.sin(jnp.pi * p[0]) * jnp.sin(4 * jnp.pi * p[1]),
    "heat": lambda p: jnp.exp(-0.1 * jnp.pi**2 * p[1]) * jnp.sin(jnp.pi * p[0]),
}


@pytest.mark.parametrize("name", sorted(SOLUTIONS))
def test_exact_solution(name):
    problem, solution = PROBLEMS[name], SOLUTIONS[name]
    points = problem.sample_interior(jax.random.key(0), 50, jnp.float32)
    derivatives = jax.jit(
        lambda points: nested_derivatives(solution, points, problem.operators)
    )(points)
    residual = problem.residual(points, **derivatives)
    scale = max(jnp.abs(v).max() for v in derivatives.values())
    np.testing.assert_allclose(residual, 0, atol=1e-5 * float(scale))
    np.testing.assert_allclose(
        derivatives["u"], problem.exact(np.asarray(points, float)), atol=1e-5
    )


def test_burgers_solution_solves_burgers_equation():
    """By central differences in float64, away from the shock."""
    problem = PROBLEMS["burgers"]
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(0.1, 0.9, 40), rng.uniform(0.05, 0.95, 40)], -1)
    h = 1e-4
    x, t = np.array([h, 0.0]), np.array([0.0, h])
    u = problem.exact
    residual = problem.residual(
        points,
        u=u(points),
        u_x=(u(points + x) - u(points - x)) / (2 * h),
        u_t=(u(points + t) - u(points - t)) / (2 * h),
        u_xx=(u(points + x) - 2 * u(points) + u(points - x)) / h**2,
    )
    np.testing.assert_allclose(residual, 0, atol=1e-5)


def test_burgers_solution_is_odd_and_starts_as_given():
    exact = PROBLEMS["burgers"].exact
    x = np.linspace(-1, 1, 11)
    start = np.stack([x, np.zeros_like(x)], -1)
    np.testing.assert_allclose(exact(start), -np.sin(np.pi * x), atol=1e-14)
    later = np.stack([x, np.full_like(x, 0.7)], -1)
    np.testing.assert_allclose(exact(later), -exact(later)[::-1], atol=1e-12)
    assert np.isfinite(exact(PROBLEMS["burgers"].grid())).all()


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_conditions_hold_for_the_solution(name):
    problem = PROBLEMS[name]
    sample = jax.jit(problem.sample_condition, static_argnums=(0, 2, 3))
    for i, condition in enumerate(problem.conditions):
        points = sample(condition, jax.random.key(i), 200, jnp.float32)
        assert points.shape == (200, problem.dimension)
        on_faces = [np.asarray(points[:, axis] == cut) for axis, cut in condition.faces]
        assert np.any(on_faces, axis=0).all()
        assert all(face.any() for face in on_faces)  # every face has its share
        assert (points >= jnp.asarray(problem.lower)).all()
        assert (points <= jnp.asarray(problem.upper)).all()
        np.testing.assert_allclose(
            condition.target(points),
            problem.exact(np.asarray(points, float)),
            atol=1e-5,
        )


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_grid_covers_the_box(name):
    problem = PROBLEMS[name]
    grid = problem.grid()
    assert grid.shape == (np.prod(problem.resolution), problem.dimension)
    np.testing.assert_array_equal(grid.min(axis=0), problem.lower)
    np.testing.assert_array_equal(grid.max(axis=0), problem.upper)
    axis = grid[:, 0].reshape(problem.resolution)  # the first coordinate varies slowest
    assert (np.ptp(axis, axis=tuple(range(1, axis.ndim))) == 0).all()
