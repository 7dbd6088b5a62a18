"""Figures as small files."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG file with a palette, a fifth of the size of one without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    picture = Image.open(path).convert("RGB")
    # Pillow's default method shifts light colours.
    method = Image.Quantize.MAXCOVERAGE
    picture.quantize(128, method=method, kmeans=4).save(path, optimize=True)
