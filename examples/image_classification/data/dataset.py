"""What a data set is, wherever its images lie; and how one is found to be damaged."""

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np

from examples.common.runs import RunError


class Source(Protocol):
    """Images with labels, by index."""

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 [n]."""

    def __len__(self) -> int: ...

    def images(self, indices: np.ndarray) -> np.ndarray:
        """The images of these indices, uint8 [len(indices), h, w, c]."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    name: str
    train: Source
    test: Source
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """Height, width and channels of an image in a batch."""


class ArraySource:
    """Images in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: np.ndarray) -> np.ndarray:
        return self._images[indices]


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def damaged(path: Path, what: str, url: str) -> RunError:
    """An error to raise: the file at `path` is not what `url` offers."""
    return RunError(f"{path} is damaged: {what}; get it from {url}.")


def checked_labels(labels: object, num_classes: int, where: Path) -> np.ndarray:
    """Labels as int32 [n]; RunError if there are none or they name no class."""
    try:
        checked = np.asarray(labels)
    except ValueError:  # lists of different lengths
        checked = np.empty(())
    if checked.ndim != 1 or not len(checked):
        raise RunError(f"{where}: there must be a list of labels, with one or more.")
    if not np.issubdtype(checked.dtype, np.integer):
        raise RunError(f"{where}: labels must be integers, got {checked.dtype}.")
    if checked.min() < 0 or checked.max() >= num_classes:
        raise RunError(
            f"{where}: labels must be from 0 to {num_classes - 1}, got "
            f"{checked.min()} to {checked.max()}."
        )
    return checked.astype(np.int32)
