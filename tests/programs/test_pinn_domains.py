"""Random points lie where they should, and everywhere there equally often."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pinn.domains import Ball, Box, Difference, OverTime, Union, segments

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUMBER = 4000
INTERVAL = Box((-1.0,), (1.0,))
RECTANGLE = Box((0.0, -1.0), (3.0, 0.0))
DISC = Ball((1.0, -2.0), 0.5)
L = Union(Box((0.0, 0.0), (1.0, 3.0)), Box((1.0, 0.0), (2.0, 1.0)))
HOLE = Ball((1.0, -1.0), 0.5)
# Half of the hole lies in the rectangle.
PLATE = Difference(RECTANGLE, HOLE)
OVERLAPPING = Union(RECTANGLE, Ball((3.0, -0.5), 0.5))
BALL = Ball((0.0, 1.0, 0.0, 0.0, 0.0), 2.0)
FIN = OverTime(PLATE, 1.0, 3.0)
DOMAINS = (INTERVAL, RECTANGLE, DISC, L, PLATE, OVERLAPPING, BALL, FIN)


def draw(sampler):
    """Coordinates of points as a program draws them: in jit, with a traced key."""
    sample = jax.jit(sampler, static_argnums=(1, 2))
    points = np.asarray(sample(jax.random.key(0), NUMBER, jnp.float32))
    assert points.dtype == np.float32
    return points.T


@functools.cache
def on_boundary(domain):
    return draw(domain.boundary())


def assert_shares(parts, expected):
    """Shares of the points, within four standard deviations."""
    np.testing.assert_allclose(np.mean(parts, axis=-1), expected, atol=0.03)


@pytest.mark.parametrize("domain", DOMAINS)
def test_points_fill_the_domain(domain):
    points = draw(domain.sample).T
    assert points.shape == (NUMBER, len(domain.lower))
    # On a ball's boundary rounding decides.
    inside = domain.contains(points), domain.contains(jnp.asarray(points))
    np.testing.assert_array_equal(*inside)
    assert np.mean(inside) > 0.999
    for bound, found in ((domain.lower, points.min(0)), (domain.upper, points.max(0))):
        # In five dimensions few points are near the ends of an axis.
        np.testing.assert_allclose(found, bound, atol=0.4 if domain is BALL else 0.02)


def test_points_are_uniform():
    x, y = draw(RECTANGLE.sample)
    assert_shares([x < 1, y < -0.5, (x < 1) & (y < -0.5)], [1 / 3, 1 / 2, 1 / 6])
    x, y = np.subtract(draw(DISC.sample).T, DISC.center).T
    assert_shares([np.hypot(x, y) < 0.25, (x > 0) & (y > 0)], 1 / 4)
    x, y = draw(L.sample)
    assert_shares([x < 1, x < 0.5, (x < 1) & (y < 1.5)], [3 / 4, 3 / 8, 3 / 8])
    x, y = draw(PLATE.sample)
    area = 3 - np.pi / 8
    assert_shares([x > 2, y > -0.5], [1 / area, 1.5 / area])
    x, y = draw(OVERLAPPING.sample)
    area = 3 + np.pi / 8
    assert_shares([x > 3, x < 1], [np.pi / 8 / area, 1 / area])
    radii = np.linalg.norm(draw(BALL.sample).T - BALL.center, axis=-1)
    assert_shares(radii < 2 * 0.9, 0.9**5)
    x, y, t = draw(FIN.sample)
    assert_shares([t < 1.5, (t < 1.5) & (y > -0.5)], [1 / 4, 1.5 / 4 / (3 - np.pi / 8)])


def test_boundaries_are_uniform():
    x, y = draw(RECTANGLE.boundary())
    assert_shares([x == 0, x == 3, y == -1, y == 0], [1 / 8, 1 / 8, 3 / 8, 3 / 8])
    assert_shares(x[y == 0] < 1, 1 / 3)
    assert RECTANGLE.contains(np.stack([x, y], axis=-1)).all()
    (x,) = draw(INTERVAL.boundary())
    assert_shares([x == -1, x == 1], 1 / 2)
    assert (draw(RECTANGLE.face(1, -0.25))[1] == -0.25).all()
    x, y = draw(RECTANGLE.faces((0, 3), (1, -1)))
    assert_shares([x == 3, y == -1], [1 / 4, 3 / 4])
    x, y = np.subtract(draw(DISC.boundary()).T, DISC.center).T
    np.testing.assert_allclose(np.hypot(x, y), 0.5, rtol=1e-6)
    assert_shares([x > 0, y > 0, x > y, x > -y], 1 / 2)
    # A triangle with sides of 3, 4 and 5.
    a, b, c = (0.0, 0.0), (3.0, 0.0), (3.0, 4.0)
    x, y = draw(segments((a, b), (b, c), (c, a)))
    sides = [y == 0, x == 3, np.isclose(4 * x, 3 * y, atol=1e-5)]
    assert np.any(sides, axis=0).all()
    assert_shares([*sides, (x == 3) & (y < 1)], [3 / 12, 4 / 12, 5 / 12, 1 / 12])


def test_boundaries_of_composites_are_uniform():
    x, y = on_boundary(PLATE)
    length, arc = 8 - 1 + np.pi / 2, np.hypot(x - 1, y + 1)
    on_arc = np.isclose(arc, 0.5, atol=1e-5)
    assert_shares([on_arc, x == 0, y == 0], np.array([np.pi / 2, 1, 3]) / length)
    assert (arc > 0.5 - 1e-5).all()
    # Faces that two parts have in common are inside.
    x, y = on_boundary(L)
    assert not ((x == 1) & (y < 0.99)).any()
    assert_shares([x == 0, y == 3, y == 0, x == 1], np.array([3, 1, 2, 2]) / 10)
    x, y = on_boundary(OVERLAPPING)
    assert not ((x == 3) & (np.abs(y + 0.5) < 0.49)).any()
    assert_shares(x > 3, np.pi / 2 / (7 + np.pi / 2))
    x, y, t = draw(FIN.boundary(lambda points: points[:, 0] > 2.5))
    assert_shares([t < 1.5, x == 3], [1 / 4, 1 / 2])
    x, y, t = draw(FIN.at(1.0))
    assert (t == 1).all()
    assert_shares(x > 2, 1 / (3 - np.pi / 8))


@pytest.mark.parametrize("domain", DOMAINS)
def test_normals_point_outwards_from_the_boundary(domain):
    points = jnp.asarray(on_boundary(domain).T)
    normals = jax.jit(domain.normal)(points)
    np.testing.assert_allclose(jnp.linalg.norm(normals, axis=-1), 1, rtol=1e-5)
    inside, outside = points - 1e-3 * normals, points + 1e-3 * normals
    # Not at the ends of time, nor within a step of a corner.
    assert np.mean(domain.contains(inside)) > 0.99
    assert np.mean(domain.contains(outside)) < 0.01


def test_domains_are_closed():
    """Also where a bound is none of the numbers of the points' dtype."""
    box = Box((0.1, 0.0), (0.7, 1.0))
    for dtype in (np.float32, np.float64):
        points = np.array([[0.1, 1.0], [0.7, 1.01]], dtype)
        assert box.contains(points).tolist() == [True, False]
        assert box.contains(jnp.asarray(points)).tolist() == [True, False]
    # The second is in the disc's bounding box.
    points = np.array([[1.5, -2.0], [1.4, -1.6]])
    assert DISC.contains(points).tolist() == [True, False]
    points = np.array([[1.0, 1.0], [1.5, 1.5], [2.0, 1.0]])
    assert L.contains(points).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Box((0.0,), (1.0, 1.0)), "lower < upper on each axis"),
        (lambda: Box((0.0, 1.0), (1.0, 1.0)), "lower < upper on each axis"),
        (lambda: RECTANGLE.face(2, 0.0), "no face at 0.0 of axis 2"),
        (lambda: RECTANGLE.faces((0, 0.0), (1, 0.5)), "no face at 0.5 of axis 1"),
        (lambda: Ball((0.0, 0.0), 0.0), "the radius must be positive, got 0.0"),
        (lambda: Union(RECTANGLE, INTERVAL), "all of the same dimension"),
        (lambda: Union(FIN, FIN), "made of boxes and balls"),
        (lambda: draw(Difference(HOLE, Ball((1, -1), 1)).sample), "has no points"),
        (lambda: draw(DISC.boundary(lambda p: p[:, 0] > 9)), "boundary, has no points"),
        (lambda: OverTime(DISC, 1.0, 0.0), "start must be before end, got 1.0, 0.0"),
    ],
)
def test_errors_say_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
