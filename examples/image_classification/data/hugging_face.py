"""A data set saved by Hugging Face's `DatasetDict.save_to_disk`."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from examples.common.runs import RunError
from examples.image_classification.data.dataset import (
    Dataset,
    checked_labels,
    one_line,
)
from examples.image_classification.data.decode import EncodedSource

MARK = "dataset_dict.json"
"""The file that says what a folder holds."""

TEST_SPLITS = ("validation", "val", "test")
"""Looked for in this order: labels of "test" are often secret where there are more."""


class RowSource(EncodedSource):
    """Rows of a table with encoded images."""

    def __init__(
        self, rows: Any, column: str, labels: np.ndarray, size: int, where: Path
    ):
        super().__init__(labels, size)
        self._rows = rows
        self._column = column
        self._where = where

    def _files(self, indices: np.ndarray) -> Iterator[tuple[Path | BinaryIO, str]]:
        # Of no rows, `datasets` gives no columns.
        encoded = self._rows[indices.tolist()][self._column] if len(indices) else []
        for index, image in zip(indices, encoded, strict=True):
            where = f"{self._where}: image {index}"
            if image is None:
                raise RunError(f"{where} is missing.")
            # The bytes of the file, or where it lies.
            content, path = image["bytes"], image["path"]
            yield Path(path or "") if content is None else io.BytesIO(content), where


def load(data_dir: Path, image_size: int) -> Dataset:
    """Opens the data set; its columns are found by their types."""
    try:
        import datasets
    except ImportError:
        raise RunError(
            f"{data_dir} is a Hugging Face data set: reading it needs the package "
            "datasets, pip install datasets."
        ) from None
    try:
        splits = datasets.load_from_disk(str(data_dir))
    except Exception as error:  # of Arrow, JSON and files: not bounded
        raise RunError(
            f"{data_dir} cannot be read as a Hugging Face data set: {one_line(error)}"
        ) from None
    test = next((name for name in TEST_SPLITS if name in splits), None)
    if "train" not in splits or test is None:
        raise RunError(
            f"{data_dir} must have the splits train and validation (or test), it has "
            f"{', '.join(splits) or 'none'}."
        )
    features = splits["train"].features
    image = _column(features, datasets.Image, "image", data_dir)
    label = _column(features, datasets.ClassLabel, "label", data_dir)
    for name in (image, label):
        if splits[test].features.get(name) != features[name]:
            raise RunError(
                f"{data_dir}: column {name} of {test} differs from that of train."
            )
    class_names = tuple(features[label].names)

    def source(split: str) -> RowSource:
        rows = splits[split]
        where = data_dir / split
        labels = checked_labels(rows[label][:], len(class_names), where)
        # Read without their decoder, which would keep the size.
        rows = rows.select_columns([image])
        rows = rows.cast_column(image, datasets.Image(decode=False))
        return RowSource(rows, image, labels, image_size, where)

    return Dataset(
        name="folder",
        train=source("train"),
        test=source(test),
        class_names=class_names,
        image_shape=(image_size, image_size, 3),
    )


def _column(features: Any, kind: type, usual: str, where: Path) -> str:
    """The column of a type; if there are several, that of the usual name."""
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if usual in found:
        return usual
    if len(found) != 1:
        raise RunError(
            f"{where} must have one column of type {kind.__name__}, or one of them "
            f"named {usual}; it has {', '.join(found) or 'none'}."
        )
    return found[0]
