"""Whatever Hugging Face `datasets` reads.

That is a folder with a folder of images for each class, Parquet files, what
`DatasetDict.save_to_disk` wrote, or a name on the hub.
"""

import dataclasses
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageOps

from examples.common.runs import RunError
from examples.image_classification.data.sources import Dataset, mirrored

TEST_SPLITS = ("validation", "val", "test")
"""In order of preference: the labels of "test" are often secret."""

BILINEAR = Image.Resampling.BILINEAR


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images of any size, decoded and resized when they are read."""

    rows: Any
    """A table with one column of encoded images."""
    labels: np.ndarray
    size: int
    where: str

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Resizes the shorter side and crops the centre."""
        size = (self.size, self.size)
        middles = [ImageOps.fit(x, size, BILINEAR) for x in self._decoded(indices)]
        return np.stack([np.asarray(middle) for middle in middles])

    def augmented(self, indices: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Crops a random region and resizes it; half of the images are mirrored."""
        size = (self.size, self.size)
        regions = [
            picture.resize(size, BILINEAR, random_region(*picture.size, draw))
            for picture, draw in zip(self._decoded(indices), draws, strict=True)
        ]
        images = np.stack([np.asarray(region) for region in regions])
        return mirrored(images, draws[:, 4])

    def _decoded(self, indices: np.ndarray) -> Iterator[Image.Image]:
        (column,) = self.rows.column_names
        encoded = self.rows[indices.tolist()][column]
        for index, image in zip(indices, encoded, strict=True):
            name = f"image {index} of {self.where}"
            try:
                name = image["path"] or name
                content = image["bytes"]
                with Image.open(
                    name if content is None else io.BytesIO(content)
                ) as file:
                    picture = file.convert("RGB")
            except Exception as error:  # of a damaged file, Pillow raises many types
                raise RunError(f"{name} cannot be read as an image: {error}.") from None
            yield picture


def random_region(
    width: int, height: int, draws: np.ndarray
) -> tuple[float, float, float, float]:
    """Left, upper, right and lower border.

    Areas are uniform from 8 to 100 percent, widths over heights log-uniform from 3/4 to
    4/3; what is too wide or high is cut off. Szegedy et al.,
    https://arxiv.org/abs/1409.4842, 2014.
    """
    area = width * height * (0.08 + 0.92 * draws[0])
    ratio = (4 / 3) ** (2 * draws[1] - 1)
    own_width = min(width, math.sqrt(area * ratio))
    own_height = min(height, math.sqrt(area / ratio))
    left = draws[2] * (width - own_width)
    top = draws[3] * (height - own_height)
    return left, top, left + own_width, top + own_height


def load(place: str, size: int) -> Dataset:
    """Opens a data set; its columns are found by their types."""
    splits = _read(place)
    test = next((name for name in TEST_SPLITS if name in splits), None)
    if "train" not in splits or test is None:
        raise RunError(
            f"{place} must have the splits train and validation (or test), it has "
            f"{', '.join(splits)}."
        )
    features = splits["train"].features
    image = _column(features, datasets.Image, ("image",), place)
    label = _column(features, datasets.ClassLabel, ("label", "fine_label"), place)
    for name in (image, label):
        if splits[test].features.get(name) != features[name]:
            raise RunError(
                f"{place}: column {name} of {test} differs from that of train."
            )

    def source(split: str) -> Pictures:
        labels = np.asarray(splits[split][label][:])
        # A missing label changes the type of the array; -1 stands for a secret label.
        if labels.dtype.kind != "i" or labels.min() < 0:
            raise RunError(f"{place}: {split} must have images, and a label for each.")
        rows = splits[split].select_columns([image])
        rows = rows.cast_column(image, datasets.Image(decode=False))
        return Pictures(rows, labels.astype(np.int32), size, f"{split} of {place}")

    train, tested = source("train"), source(test)
    untrained = np.setdiff1d(tested.labels, train.labels)
    if len(untrained):
        name = features[label].int2str(int(untrained[0]))
        raise RunError(f"{place}: train has no images of {name}, a class of {test}.")
    return Dataset(train, tested, features[label].num_classes, (size, size, 3))


def _read(place: str) -> Any:
    try:
        if (Path(place) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(place)
        return datasets.load_dataset(place)
    except Exception as error:  # of files, Arrow, JSON and the network: not bounded
        why = " ".join(str(error).split()).rstrip(".")
        raise RunError(
            f"{place} cannot be read ({why}): --data-dir must be a folder of images, "
            "of Parquet files or written by save_to_disk, or a name on the Hugging "
            "Face hub."
        ) from None


def _column(features: Any, kind: type, usual: tuple[str, ...], place: str) -> str:
    """The column of a type; if there are several, one with a usual name."""
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    for name in usual if len(found) != 1 else found:
        if name in found:
            return name
    raise RunError(
        f"{place} must have one column of type {kind.__name__}, or one of them named "
        f"{usual[0]}; it has {', '.join(found) or 'none'}."
    )
