"""Reference solutions solve their problems, and their scripts make them."""

from pathlib import Path

import numpy as np
import pytest

from examples.common.runs import RunError
from examples.pinn.problems import reference
from examples.pinn.problems.reference import l_shape

pytestmark = pytest.mark.program

FILE = Path(reference.__file__).parent / "l_shape.npz"
CELLS = 32


def on_square(path, cells):
    """The file's u at the nodes of [-1, 1]²; NaN where it has none."""
    with np.load(path) as file:
        points, u = file["points"], file["u"]
    index = (points.astype(float) + 1) * cells
    np.testing.assert_array_equal(index, index.round())
    square = np.full((2 * cells + 1,) * 2, np.nan)
    square[tuple(index.astype(int).T)] = u
    assert np.isfinite(square).sum() == len(u)  # no point occurs twice
    return square


@pytest.fixture(scope="module")
def u():
    return on_square(FILE, CELLS)


def relative_error(u, reference):
    inside = np.isfinite(reference)
    difference = (u - reference)[inside]
    return np.linalg.norm(difference) / np.linalg.norm(reference[inside])


def test_points_are_the_nodes_of_the_l_shape(u):
    x, y = l_shape.nodes(CELLS)
    np.testing.assert_array_equal(np.isfinite(u), (x <= 0) | (y >= 0))


def test_solution_is_zero_on_the_dirichlet_sides_only(u):
    x, y = l_shape.nodes(CELLS)
    outer = (abs(y) == 1) | (x == 1)
    inner = ((x == 0) & (y <= 0)) | ((y == 0) & (x >= 0))
    np.testing.assert_array_equal(u == 0, (outer | inner) & np.isfinite(u))


@pytest.mark.parametrize("stride", [1, 2])
def test_solution_solves_the_five_point_equations(u, stride):
    """Away from the Dirichlet corners, where its fourth derivatives are large.

    Near the origin u is close to 0.54 r^(2/3) sin(2/3 θ), so the differences are off by
    h²/12 (u_xxxx + u_yyyy), which is at most 3.4 h² at r = 0.3.
    """
    h = stride / CELLS
    u = u[::stride, ::stride]
    mirrored = np.concatenate([u[1:2], u])  # the Neumann side's ghost nodes
    centre = mirrored[1:-1, 1:-1]
    neighbours = mirrored[:-2, 1:-1] + mirrored[2:, 1:-1]
    neighbours += mirrored[1:-1, :-2] + mirrored[1:-1, 2:]
    residual = (4 * centre - neighbours) / h**2 - 1
    x, y = (axis[:-1, 1:-1] for axis in l_shape.nodes(CELLS // stride))
    corners = [(0, 0), (0, -1), (1, 0), (1, 1)]
    far = np.min([np.hypot(x - a, y - b) for a, b in corners], axis=0) > 0.3
    unknown = (x < 0) | (y > 0)
    assert np.abs(residual[far & unknown]).max() < 4 * h**2


def test_grids_converge_to_the_file_at_the_orders_that_are_removed(u):
    def order(grids):
        before, last = (relative_error(grid, u[::4, ::4]) for grid in grids[-2:])
        return np.log2(before / last)

    sizes = (8, 16, 32, 64)
    grids = [l_shape.solution(n)[:: n // 8, :: n // 8] for n in sizes]
    assert order(grids) == pytest.approx(4 / 3, abs=0.1)
    # Without either order in ORDERS, this would be at most 2.2.
    assert order(l_shape.extrapolated(grids)) > 2.5


def test_script_makes_the_file(u, tmp_path, capsys):
    """On coarser grids: to better than the last order that it removes."""
    out = tmp_path / "coarse.npz"
    l_shape.main(l_shape.Options(out, cells=8, finest=64))
    error = relative_error(on_square(out, 8), u[::4, ::4])
    assert error < 64.0**-2
    printed = capsys.readouterr().out
    # The estimate is of the solution on grids twice as coarse.
    assert error < float(printed.split()[-1]) < 32.0**-2


@pytest.mark.parametrize("sizes", [{"cells": 0}, {"finest": 0}, {"finest": 500}])
def test_grids_that_do_not_nest_are_refused(sizes, tmp_path):
    with pytest.raises(RunError, match=f"--{next(iter(sizes))} must be"):
        l_shape.main(l_shape.Options(tmp_path / "never.npz", **sizes))
