"""What a data set is, and images in memory."""

import dataclasses
from typing import Protocol

import numpy as np

DRAWS = 5
"""Random numbers that decide how one image is augmented."""


class Source(Protocol):
    """Images with labels, by index."""

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 [n]."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images that are not augmented, uint8 [len(indices), h, w, c]."""

    def augmented(self, indices: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """The same images, cropped and flipped in the way that is usual for the data.

        `draws`, [len(indices), DRAWS], are random numbers, uniform in [0, 1).
        """


@dataclasses.dataclass(frozen=True)
class Dataset:
    train: Source
    test: Source
    classes: int
    image_shape: tuple[int, int, int]
    """Height, width and channels of an image in a batch."""


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Images in memory, all of one size."""

    images: np.ndarray
    labels: np.ndarray
    margin: int = 0
    """Black pixels around an image, before it is cropped to its size again."""
    flip: bool = False
    """Whether half of the augmented images are mirrored, left to right."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self.images[indices]

    def augmented(self, indices: np.ndarray, draws: np.ndarray) -> np.ndarray:
        images = self.images[indices]
        height, width = images.shape[1:3]
        border = (self.margin, self.margin)
        padded = np.pad(images, ((0, 0), border, border, (0, 0)))
        corners = (draws[:, :2] * (2 * self.margin + 1)).astype(int)
        for image, whole, (top, left) in zip(images, padded, corners, strict=True):
            image[...] = whole[top : top + height, left : left + width]
        return mirrored(images, draws[:, 2]) if self.flip else images


def mirrored(images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Mirrors the images whose draw is below 1/2, left to right."""
    return np.where(draws[:, None, None, None] < 0.5, images[:, :, ::-1], images)
