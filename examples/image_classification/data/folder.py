"""Images in a folder for each class, as ImageNet has them, decoded when asked for.

train/<class>/*.jpg
val/<class>/*.jpg     or test/
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from examples.common.runs import RunError
from examples.image_classification.data.dataset import Dataset
from examples.image_classification.data.decode import EncodedSource

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class FileSource(EncodedSource):
    """Image files with labels."""

    def __init__(self, paths: list[Path], labels: np.ndarray, size: int):
        super().__init__(labels, size)
        self._paths = paths

    def _files(self, indices: np.ndarray) -> Iterator[tuple[Path, str]]:
        for index in indices:
            yield self._paths[index], str(self._paths[index])


def load(data_dir: Path, image_size: int) -> Dataset:
    """Lists the files; the classes are the folders in train, by name."""
    train = data_dir / "train"
    test = next(
        (data_dir / x for x in ("val", "test") if (data_dir / x).is_dir()), None
    )
    if not train.is_dir() or test is None:
        raise RunError(
            f"{data_dir} must have folders train and val (or test), each with a folder "
            "of images for each class."
        )
    class_names = tuple(_folders(train))
    unknown = sorted(set(_folders(test)) - set(class_names))
    if unknown:
        raise RunError(f"{test / unknown[0]}: {train} has no class of this name.")
    return Dataset(
        name="folder",
        train=_source(train, class_names, image_size),
        test=_source(test, class_names, image_size),
        class_names=class_names,
        image_shape=(image_size, image_size, 3),
    )


def _folders(part: Path) -> list[str]:
    return sorted(
        path.name
        for path in part.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )


def _source(part: Path, class_names: tuple[str, ...], image_size: int) -> FileSource:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        if (part / name).is_dir():
            found = sorted(
                path
                for path in (part / name).iterdir()
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            )
            paths += found
            labels += [label] * len(found)
    if not paths:
        raise RunError(
            f"{part} has no images: expected {part}/<class>/*{', *'.join(SUFFIXES)}."
        )
    return FileSource(paths, np.asarray(labels, np.int32), image_size)
