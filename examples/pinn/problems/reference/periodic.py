"""References for Allen-Cahn and for reaction and diffusion: writes their .npz files.

python -m examples.pinn.problems.reference.periodic --out FOLDER

u_t = a u_xx + f(u) on a circle, by splitting: diffusion is exact in Fourier space, and
both reactions have closed solutions. Richardson extrapolation of Strang's second order.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro

MODES = 1024
"""Points of the circle."""
KEPT = 128, 51
"""Points of the circle and of time in the files."""

Reaction = Callable[[np.ndarray, float], np.ndarray]
"""Maps u and a time to the solution of u_t = f(u) after it."""


def logistic(u: np.ndarray, time: float) -> np.ndarray:
    """u_t = 5 u (1 - u)."""
    growth = np.exp(5 * time)
    return growth * u / (1 + (growth - 1) * u)


def bistable(u: np.ndarray, time: float) -> np.ndarray:
    """u_t = 5 u - 5 u³."""
    growth = np.exp(5 * time)
    return growth * u / np.sqrt(1 + (growth**2 - 1) * u**2)


def solution(
    u: np.ndarray, length: float, a: float, react: Reaction, steps: int
) -> np.ndarray:
    """The values at KEPT[1] times from 0 to 1, shape (times, points).

    `steps` are those between two of these times.
    """
    step = 1 / ((KEPT[1] - 1) * steps)
    frequencies = 2 * np.pi / length * np.fft.rfftfreq(len(u), 1 / len(u))
    decay = np.exp(-a * frequencies**2 * step)
    found = [u]
    for _ in range(KEPT[1] - 1):
        for _ in range(steps):
            u = react(u, step / 2)
            u = np.fft.irfft(decay * np.fft.rfft(u), len(u))
            u = react(u, step / 2)
        found.append(u)
    return np.array(found)


def main(out: Path, steps: int = 400) -> None:
    """Solves both equations, and writes u at a coarse grid of points, in float32.

    Args:
      out: folder for allen_cahn.npz and reaction_diffusion.npz.
      steps: of time between two times in the files, for the finest of three runs.
    """
    circle = np.arange(MODES) / MODES  # as a part of its length
    x = 2 * circle - 1
    bump = np.exp(-8 * x**2)
    problems = {
        "allen_cahn": (-1.0, 2.0, 1e-4, bistable, x**2 * np.cos(np.pi * x)),
        "reaction_diffusion": (0.0, 2 * np.pi, 4.0, logistic, bump),
    }
    times = np.linspace(0, 1, KEPT[1])
    for name, (start, length, a, react, initial) in problems.items():
        coarse, middle, fine = (
            solution(initial, length, a, react, n)
            for n in (steps // 4, steps // 2, steps)
        )
        before, u = middle + (middle - coarse) / 3, fine + (fine - middle) / 3
        print(f"{name}: estimated error {np.abs(u - before).max():.1e}")
        stride = MODES // KEPT[0]
        grid = np.meshgrid(start + length * circle[::stride], times)
        points = np.stack([axis.ravel() for axis in grid], axis=-1)
        np.savez_compressed(
            out / f"{name}.npz",
            points=np.float32(points),
            u=np.float32(u[:, ::stride].ravel()),
        )


if __name__ == "__main__":
    tyro.cli(main)
