"""PINNacle's reference data: a folder of the user's, from its public repository."""

import os
from pathlib import Path

import numpy as np

FOLDER = "PINNACLE_REFERENCE"
"""The variable of the environment that names the folder."""


def read(file: str) -> np.ndarray:
    """The columns of a file that COMSOL has exported: x, y, and what was computed."""
    return np.loadtxt(Path(os.environ[FOLDER]) / file, comments="%").T


def solution(file: str, *fields: str) -> dict[str, np.ndarray]:
    """The points of such a file, and fields by name."""
    x, y, *columns = read(file)
    points = {"points": np.stack([x, y], axis=-1)}
    return points | dict(zip(fields, columns, strict=True))
