"""Reference for -Δu = 1 on an L-shape, one side of it Neumann: writes l_shape.npz.

python -m examples.pinn.problems.reference.l_shape --out FILE.npz

The L-shape is [-1, 1]² without its lower right quarter: its reentrant corner is the
origin. ∂u/∂x = 0 on the left side, x = -1, and u = 0 on the rest of the boundary.

Second-order differences. At the reentrant corner u behaves like r^(2/3), so the error
at a fixed node is a series in powers of the spacing whose first orders are known to be
4/3 and 2. Richardson extrapolation removes both. The other corners add no lower order:
at the ends of the Neumann side, the even reflection of u is smooth.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import tyro
from scipy import sparse
from scipy.sparse.linalg import splu

ORDERS = (4 / 3, 2.0)


def nodes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the nodes of [-1, 1]², n cells per unit length."""
    axis = np.arange(-n, n + 1) / n
    x, y = np.meshgrid(axis, axis, indexing="ij")
    return x, y


def solution(n: int) -> np.ndarray:
    """The values of u at the nodes of [-1, 1]², zero outside the L-shape."""
    x, y = nodes(n)
    unknown = (x < 1) & (abs(y) < 1) & ((x < 0) | (y > 0))
    one = sparse.eye_array(len(x))
    in_y = sparse.diags_array((-1.0, 2.0, -1.0), offsets=(-1, 0, 1), shape=one.shape)
    in_x = in_y.tolil()
    in_x[0, 1] = -2.0  # the ghost node's value is that of its mirror image in x = -1
    matrix = n**2 * (sparse.kron(in_x, one) + sparse.kron(one, in_y)).tocsr()
    # Columns left out are nodes where u = 0.
    kept = np.flatnonzero(unknown)
    matrix = matrix[kept][:, kept].tocsc()
    # Pivots on the diagonal are stable for this M-matrix, and keep its factors sparse.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0)
    u = np.zeros(unknown.shape)
    u[unknown] = factors.solve(np.ones(len(kept)))
    return u


def main(out: Path, cells: int = 32, finest: int = 512) -> None:
    """Solves -Δu = 1 on the L-shape, and writes u at the nodes of a coarse grid.

    Args:
      out: the .npz file: points of shape (n, 2) and u of shape (n,), in float32.
      cells: cells per unit length of the grid in the file.
      finest: those of the finest of four grids: a multiple of 8 cells.
    """
    sizes = [finest // 8, finest // 4, finest // 2, finest]
    grids = [solution(n)[:: n // cells, :: n // cells] for n in sizes]
    for order in ORDERS:
        # From each two successive grids, coarse and fine, at the common nodes.
        grids = [fine + (fine - c) / (2**order - 1) for c, fine in pairwise(grids)]
    before, u = grids
    error = np.linalg.norm(u - before) / np.linalg.norm(u)
    print(f"estimated relative L2 error: {error:.1e}")
    x, y = nodes(cells)
    inside = (x <= 0) | (y >= 0)
    points = np.stack([x[inside], y[inside]], axis=-1)
    np.savez_compressed(out, points=np.float32(points), u=np.float32(u[inside]))


if __name__ == "__main__":
    tyro.cli(main)
