"""The solutions solve the equations and meet the conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pinn.operators import nested_derivatives
from examples.pinn.problems import PROBLEMS, advection, checks, kovasznay
from examples.pinn.problems.problem import names_taken

pytestmark = pytest.mark.usefixtures("quick_compilation")

POINTS = 60


def flow(p):
    return jnp.stack([u[0] for u in kovasznay.exact(p[None], jnp).values()])


# Solutions as JAX functions of one point; Burgers' is tested by itself.
SOLUTIONS = {
    "poisson": lambda p: jnp.sin(jnp.pi * p[0]) * jnp.sin(jnp.pi * p[1]),
    "poisson1d": lambda p: jnp.sin(jnp.pi * p[0]),
    "helmholtz": lambda p: jnp.sin(jnp.pi * p[0]) * jnp.sin(4 * jnp.pi * p[1]),
    "heat": lambda p: jnp.exp(-0.1 * jnp.pi**2 * p[1]) * jnp.sin(jnp.pi * p[0]),
    "advection": lambda p: jnp.sin(p[0] - advection.SPEED * p[1]),
    "kovasznay": flow,
}


def zeros_of(residual, quantities, points):
    """What a residual makes of the quantities, as one array."""
    taken = {name: quantities[name] for name in names_taken(residual)}
    found = residual(points, **taken)
    parts = found.values() if isinstance(found, dict) else [found]
    return np.concatenate([np.ravel(x) for x in parts])


@pytest.mark.parametrize("name", sorted(SOLUTIONS))
def test_solution(name):
    """It solves the equation, meets every condition, and is what errors are against."""
    problem, solution = PROBLEMS[name], SOLUTIONS[name]

    @jax.jit
    def quantities(points):
        return nested_derivatives(solution, points, problem.operators, problem.fields)

    parts = [(problem.domain.sample, problem.residual)]
    parts += [(condition.where, condition.residual) for condition in problem.conditions]
    for i, (sample, residual) in enumerate(parts):
        points = sample(jax.random.key(i), POINTS, jnp.float32)
        found = quantities(points)
        scale = max(1.0, *(float(jnp.abs(x).max()) for x in found.values()))
        zeros = zeros_of(residual, found, points)
        np.testing.assert_allclose(zeros, 0, atol=1e-5 * scale)
        exact = problem.solution(np.asarray(points, float))
        assert tuple(exact) == problem.fields
        for field, u in exact.items():
            np.testing.assert_allclose(found[field], u, atol=1e-5)


def test_burgers_solution_solves_burgers_equation():
    """By central differences in float64, away from the shock."""
    problem = PROBLEMS["burgers"]
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(0.1, 0.9, 40), rng.uniform(0.05, 0.95, 40)], -1)
    h = 1e-4
    x, t = np.array([h, 0.0]), np.array([0.0, h])
    u = problem.exact
    derivatives = {
        "u_x": (u(points + x) - u(points - x)) / (2 * h),
        "u_t": (u(points + t) - u(points - t)) / (2 * h),
        "u_xx": (u(points + x) - 2 * u(points) + u(points - x)) / h**2,
    }
    residual = problem.residual(points, u(points), **derivatives)
    np.testing.assert_allclose(residual, 0, atol=1e-5)
    inverse = PROBLEMS["burgers-inverse"]
    residual = inverse.residual(
        points, u(points), **derivatives, **inverse.exact_unknowns
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


@pytest.mark.parametrize(
    ("name", "noise"),
    [("burgers", 0), ("burgers-inverse", 0), ("burgers-inverse-noisy", 0.01)],
)
def test_values_of_burgers(name, noise):
    problem = PROBLEMS[name]
    for condition in problem.conditions:
        points = condition.where(jax.random.key(0), POINTS, jnp.float32)
        exact = problem.solution(np.asarray(points, float))
        zeros = zeros_of(condition.residual, exact, points)
        if not noise:
            np.testing.assert_allclose(zeros, 0, atol=1e-5)
        else:
            share = zeros.std() / exact["u"].std()
            np.testing.assert_allclose(share, noise, rtol=0.1)


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_problems_have_no_mistake_and_a_grid_over_their_domain(name):
    problem = PROBLEMS[name]
    checks.check(problem)
    grid = problem.grid()
    assert grid.shape == (np.prod(problem.resolution), problem.dimension)
    np.testing.assert_allclose(grid.min(axis=0), problem.domain.lower)
    np.testing.assert_allclose(grid.max(axis=0), problem.domain.upper)
    axis = grid[:, 0].reshape(problem.resolution)  # the first coordinate varies slowest
    assert (np.ptp(axis, axis=tuple(range(1, axis.ndim))) == 0).all()
    points, solution = problem.reference()
    assert np.asarray(problem.domain.contains(points)).all()
    assert all(u.shape == (len(points),) for u in solution.values())
