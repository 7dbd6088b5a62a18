"""An encoded image as pixels: its shorter side resized, then cut out of the middle."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from examples.common.runs import RunError


def decode(file: Path | BinaryIO, size: int, where: str) -> np.ndarray:
    """Decodes to uint8 [size, size, 3]; RunError says `where` what is no image lies."""
    try:
        with Image.open(file) as image:
            # A large JPEG is decoded at a half, a quarter or an eighth of its size, as
            # long as this leaves twice of what is wanted.
            image.draft("RGB", (2 * size, 2 * size))
            fitted = ImageOps.fit(
                image.convert("RGB"), (size, size), Image.Resampling.BILINEAR
            )
    except (
        OSError,
        ValueError,
        SyntaxError,  # of a damaged PNG
        EOFError,
        Image.DecompressionBombError,
    ) as error:
        raise RunError(f"{where} cannot be read as an image: {error}.") from None
    return np.asarray(fitted)


def stacked(images: list[np.ndarray], size: int) -> np.ndarray:
    """Images as one array, though there may be none."""
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
