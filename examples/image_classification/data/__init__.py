"""Data sets by name, and batches of them."""

from pathlib import Path

import numpy as np

from examples.common.runs import RunError
from examples.image_classification.config import DataName
from examples.image_classification.data.loader import Loader
from examples.image_classification.data.sources import Arrays, Dataset, Source
from examples.image_classification.data.statistics import statistics

__all__ = ["Dataset", "Loader", "load", "statistics"]

CIFAR = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
"""Names on the Hugging Face hub."""
CIFAR_SIZE = 32
PICTURE_SIZE = 224


def load(
    name: DataName, data_dir: Path | None, image_size: int | None = None
) -> Dataset:
    """The data set `name`, from `data_dir`.

    Only what "folder" names has images of a size that can be chosen.
    """
    if image_size is not None and name != "folder":
        raise RunError(f"--image-size is for folder, got {image_size} for {name}.")
    # Imported where they are needed: scikit-learn and datasets take seconds.
    if name == "digits":
        from examples.image_classification.data import digits

        if data_dir is not None:
            raise RunError("--data-dir is not for digits, which scikit-learn holds.")
        return digits.load()
    if name == "fashion-mnist":
        from examples.image_classification.data import fashion_mnist

        return fashion_mnist.load(data_dir)
    from examples.image_classification.data import hugging_face

    if name in CIFAR:
        place = str(data_dir or CIFAR[name])
        return _cifar(name, hugging_face.load(place, CIFAR_SIZE))
    if data_dir is None:
        raise RunError(
            "folder needs --data-dir, with train/<class>/ and val/<class>/ in it, or "
            "another data set that Hugging Face's datasets reads."
        )
    return hugging_face.load(str(data_dir), image_size or PICTURE_SIZE)


def _cifar(name: str, pictures: Dataset) -> Dataset:
    """Images this small are decoded once, and augmented as is usual for them."""
    if pictures.classes != int(name.removeprefix("cifar")):
        raise RunError(f"--data-dir is not {name}: it has {pictures.classes} classes.")

    def decoded(source: Source) -> Arrays:
        images = source.read(np.arange(len(source.labels)))
        return Arrays(images, source.labels, margin=4, flip=True)

    train, test = decoded(pictures.train), decoded(pictures.test)
    return Dataset(train, test, pictures.classes, pictures.image_shape)
