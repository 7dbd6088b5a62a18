"""Random points lie where they should, and everywhere there equally often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pinn.domains import Box, Disc, Union, segments

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUMBER = 4000
INTERVAL = Box((-1.0,), (1.0,))
RECTANGLE = Box((0.0, -1.0), (3.0, 0.0))
DISC = Disc((1.0, -2.0), 0.5)
L = Union(Box((0.0, 0.0), (1.0, 3.0)), Box((1.0, 0.0), (2.0, 1.0)))


def draw(sampler, key=0):
    """Points as a program draws them: in jit, with a traced key."""
    sample = jax.jit(sampler, static_argnums=(1, 2))
    return np.asarray(sample(jax.random.key(key), NUMBER, jnp.float32))


def assert_shares(parts, expected):
    """Shares of the points, within four standard deviations."""
    np.testing.assert_allclose(np.mean(parts, axis=-1), expected, atol=0.03)


@pytest.mark.parametrize(
    ("domain", "center"),
    [
        (INTERVAL, (0.0,)),
        (RECTANGLE, (1.5, -0.5)),
        (DISC, DISC.center),
        (L, (0.5, 0.5)),
    ],
)
def test_points_inside(domain, center):
    points = draw(domain.sample)
    assert points.shape == (NUMBER, len(domain.lower))
    assert points.dtype == np.float32
    assert (domain.lower <= points).all()
    assert (points <= domain.upper).all()
    # On a disc's circle rounding decides, so points are moved a little inwards.
    inside = points + 1e-5 * (np.float32(center) - points)
    assert domain.contains(inside).all()
    assert np.asarray(domain.contains(jnp.asarray(inside))).all()
    # The bounds are no wider than they have to be.
    np.testing.assert_allclose(points.min(axis=0), domain.lower, atol=0.02)
    np.testing.assert_allclose(points.max(axis=0), domain.upper, atol=0.02)


def test_points_are_uniform():
    x, y = draw(RECTANGLE.sample).T
    assert_shares([x < 1, y < -0.5, (x < 1) & (y < -0.5)], [1 / 3, 1 / 2, 1 / 6])
    x, y = (draw(DISC.sample) - DISC.center).T
    assert_shares([np.hypot(x, y) < 0.25, (x > 0) & (y > 0)], 1 / 4)
    points = draw(L.sample)
    assert_shares([box.contains(points) for box in L.boxes], [3 / 4, 1 / 4])
    x, y = points[L.boxes[0].contains(points)].T
    assert_shares([x < 0.5, y < 1.5], 1 / 2)


def test_domains_are_closed():
    """Also where a bound is none of the numbers of the points' dtype."""
    box = Box((0.1, 0.0), (0.7, 1.0))
    for dtype in (np.float32, np.float64):
        corner, beyond = np.array([[0.1, 1.0], [0.7, 1.01]], dtype)
        assert box.contains(corner)
        assert not box.contains(beyond)
        assert box.contains(jnp.asarray(corner))
        assert not box.contains(jnp.asarray(beyond))
    assert DISC.contains(np.array([1.5, -2.0]))
    assert not DISC.contains(np.array([1.4, -1.6]))  # in its bounding box
    corner_of_the_l = np.array([[1.0, 1.0], [1.5, 1.5], [2.0, 1.0]])
    np.testing.assert_array_equal(L.contains(corner_of_the_l), [True, False, True])


def test_boundaries_are_uniform():
    x, y = draw(RECTANGLE.boundary()).T
    assert_shares([x == 0, x == 3, y == -1, y == 0], [1 / 8, 1 / 8, 3 / 8, 3 / 8])
    assert_shares(x[y == 0] < 1, 1 / 3)
    assert RECTANGLE.contains(np.stack([x, y], axis=-1)).all()
    (x,) = draw(INTERVAL.boundary()).T
    assert_shares([x == -1, x == 1], 1 / 2)
    x, y = draw(RECTANGLE.face(1, -0.25)).T
    assert (y == -0.25).all()
    x, y = draw(RECTANGLE.faces((0, 3), (1, -1))).T
    assert_shares([x == 3, y == -1], [1 / 4, 3 / 4])
    x, y = (draw(DISC.boundary()) - DISC.center).T
    np.testing.assert_allclose(np.hypot(x, y), 0.5, rtol=1e-6)
    assert_shares([x > 0, y > 0, x > y, x > -y], 1 / 2)


def test_segments_by_length():
    """A triangle with sides of 3, 4 and 5."""
    a, b, c = (0.0, 0.0), (3.0, 0.0), (3.0, 4.0)
    x, y = draw(segments((a, b), (b, c), (c, a))).T
    sides = [y == 0, x == 3, np.isclose(4 * x, 3 * y, atol=1e-5)]
    assert np.any(sides, axis=0).all()
    assert_shares(sides, [3 / 12, 4 / 12, 5 / 12])
    assert_shares(y[x == 3] < 1, 1 / 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Box((0.0,), (1.0, 1.0)), "lower < upper on each axis"),
        (lambda: Box((0.0, 1.0), (1.0, 1.0)), "lower < upper on each axis"),
        (lambda: RECTANGLE.face(2, 0.0), "no face at 0.0 of axis 2"),
        (lambda: RECTANGLE.faces((0, 0.0), (1, 0.5)), "no face at 0.5 of axis 1"),
        (lambda: Disc((0.0, 0.0), 0.0), "the radius must be positive, got 0.0"),
        (lambda: Union(RECTANGLE, Box((2.0, -2.0), (4.0, -0.5))), "overlap"),
    ],
)
def test_errors_say_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
