"""Images that lie encoded in files or tables, and are decoded when asked for."""

import abc
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from examples.common.runs import RunError


class Region(NamedTuple):
    """A rectangle in an image of any size."""

    area: float
    """Share of the image's area."""
    ratio: float
    """Width over height, in pixels."""
    left: float
    """Of all positions inside the image: 0 is its left border, 1 its right one."""
    top: float

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, upper, right and lower border; what is too wide or high is cut off."""
        area = self.area * width * height
        own_width = min(width, math.sqrt(area * self.ratio))
        own_height = min(height, math.sqrt(area / self.ratio))
        left = self.left * (width - own_width)
        top = self.top * (height - own_height)
        return left, top, left + own_width, top + own_height


class EncodedSource(abc.ABC):
    """Encoded images with labels, by index."""

    def __init__(self, labels: np.ndarray, size: int):
        self.labels = labels
        self._size = size

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Images with their shorter side resized, then cut out of the middle."""
        return self._decoded(indices, [None] * len(indices))

    def cut(self, indices: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
        """Of each image a region, resized."""
        return self._decoded(indices, regions)

    @abc.abstractmethod
    def _files(self, indices: np.ndarray) -> Iterator[tuple[Path | BinaryIO, str]]:
        """Each image, and where it lies in words."""

    def _decoded(
        self, indices: np.ndarray, regions: Sequence[Region | None]
    ) -> np.ndarray:
        images = [
            decode(file, self._size, where, region)
            for (file, where), region in zip(self._files(indices), regions, strict=True)
        ]
        if not images:
            return np.zeros((0, self._size, self._size, 3), np.uint8)
        return np.stack(images)


def decode(
    file: Path | BinaryIO, size: int, where: str, region: Region | None = None
) -> np.ndarray:
    """Decodes to uint8 [size, size, 3]; RunError says `where` what is no image lies."""
    # A large JPEG is decoded at a half, a quarter or an eighth of its size, as long as
    # this leaves twice of what is wanted.
    share = 1.0 if region is None else math.sqrt(region.area)
    enough = math.ceil(2 * size / share)
    try:
        with Image.open(file) as image:
            image.draft("RGB", (enough, enough))
            whole = image.convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,  # of a damaged PNG
        EOFError,
        Image.DecompressionBombError,
    ) as error:
        raise RunError(f"{where} cannot be read as an image: {error}.") from None
    bilinear = Image.Resampling.BILINEAR
    if region is None:
        return np.asarray(ImageOps.fit(whole, (size, size), bilinear))
    return np.asarray(whole.resize((size, size), bilinear, region.box(*whole.size)))
