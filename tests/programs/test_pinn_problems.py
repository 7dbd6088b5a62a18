"""The solutions solve the equations and meet the conditions, and so do references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pinn.operators import nested_derivatives
from examples.pinn.problems import PROBLEMS, advection, kovasznay
from examples.pinn.problems.problem import names_taken
from examples.pinn.problems.reference import l_shape

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


def test_values_of_burgers():
    for name, noise in (
        ("burgers", 0),
        ("burgers-inverse", 0),
        ("burgers-inverse-noisy", 0.01),
    ):
        problem = PROBLEMS[name]
        for condition in problem.conditions:
            points = condition.where(jax.random.key(0), POINTS, jnp.float32)
            exact = problem.solution(np.asarray(points, float))
            zeros = zeros_of(condition.residual, exact, points)
            if noise:
                share = zeros.std() / exact["u"].std()
                np.testing.assert_allclose(share, noise, rtol=0.1)
            else:
                np.testing.assert_allclose(zeros, 0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_problems_have_no_mistake_and_a_grid_over_their_domain(name):
    problem = PROBLEMS[name]
    problem.check()
    grid = problem.grid()
    assert grid.shape == (np.prod(problem.resolution), problem.dimension)
    np.testing.assert_allclose(grid.min(axis=0), problem.domain.lower)
    np.testing.assert_allclose(grid.max(axis=0), problem.domain.upper)
    points, solution = problem.reference()
    assert np.asarray(problem.domain.contains(points)).all()
    assert all(u.shape == (len(points),) for u in solution.values())


def test_reference_of_the_l_shape(tmp_path):
    """It solves the five-point equations, and the script makes it.

    Away from the Dirichlet corners, where its fourth derivatives are large: near the
    origin u is close to 0.54 r^(2/3) sin(2/3 θ), so the differences are off by
    h²/12 (u_xxxx + u_yyyy), which is at most 3.4 h² at r = 0.3.
    """
    points, solution = PROBLEMS["l-shape"].reference()
    cells = 32
    u = np.full((2 * cells + 1,) * 2, np.nan)
    u[tuple(((points + 1) * cells).round().astype(int).T)] = solution["u"]
    assert np.isfinite(u).sum() == len(points)  # no point occurs twice
    mirrored = np.concatenate([u[1:2], u])  # the Neumann side's ghost nodes
    centre = mirrored[1:-1, 1:-1]
    neighbours = mirrored[:-2, 1:-1] + mirrored[2:, 1:-1]
    neighbours += mirrored[1:-1, :-2] + mirrored[1:-1, 2:]
    residual = (4 * centre - neighbours) * cells**2 - 1
    x, y = (axis[:-1, 1:-1] for axis in l_shape.nodes(cells))
    corners = [(0, 0), (0, -1), (1, 0), (1, 1)]
    far = np.min([np.hypot(x - a, y - b) for a, b in corners], axis=0) > 0.3
    unknown = (x < 0) | (y > 0)
    assert np.abs(residual[far & unknown]).max() < 4 / cells**2

    # On coarser grids: to better than the last order that the script removes.
    out = tmp_path / "coarse.npz"
    l_shape.main(out, cells=8, finest=64)
    with np.load(out) as coarse:
        index = ((coarse["points"] + 1) * cells).round().astype(int)
        expected = u[tuple(index.T)]
        error = np.linalg.norm(coarse["u"] - expected) / np.linalg.norm(expected)
    assert error < 64.0**-2
