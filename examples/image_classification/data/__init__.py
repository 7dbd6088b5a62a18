"""Data sets by name, and batches of them."""

from pathlib import Path

from examples.common.runs import RunError
from examples.image_classification.data import (
    cifar,
    digits,
    fashion_mnist,
    folder,
    hugging_face,
)
from examples.image_classification.data.augment import (
    DEFAULT_IMAGE_SIZE,
    Augment,
    default_augment,
)
from examples.image_classification.data.dataset import Dataset, Source
from examples.image_classification.data.loader import Loader
from examples.image_classification.data.normalization import statistics

__all__ = [
    "Augment",
    "Dataset",
    "Loader",
    "Source",
    "default_augment",
    "load",
    "statistics",
]

CIFAR = {archive.name: archive for archive in (cifar.CIFAR10, cifar.CIFAR100)}
NAMES = ("digits", "fashion-mnist", *CIFAR, "folder")


def load(name: str, data_dir: Path | None, *, image_size: int | None = None) -> Dataset:
    """The data set `name`, from the folder or the archive `data_dir`.

    Only what "folder" names has images of a size that can be chosen, 224 by default.
    """
    dataset = _load(name, data_dir, image_size)
    if image_size is not None and dataset.image_shape[0] != image_size:
        height, width, _ = dataset.image_shape
        raise RunError(
            f"--image-size is for folder, {name} has images of {height}x{width}."
        )
    return dataset


def _load(name: str, data_dir: Path | None, image_size: int | None) -> Dataset:
    if name not in NAMES:
        raise RunError(f"--data must be one of {', '.join(NAMES)}, got {name}.")
    if data_dir is not None and not data_dir.exists():
        raise RunError(f"--data-dir {data_dir} does not exist.")
    if name == "digits":
        if data_dir is not None:
            raise RunError("--data-dir is not for digits, which scikit-learn holds.")
        return digits.load()
    if name == "fashion-mnist":
        return fashion_mnist.load(data_dir)
    if name in CIFAR:
        if data_dir is None:
            archive = CIFAR[name].file
            raise RunError(
                f"{name} needs --data-dir, the folder of {archive} from {cifar.URL}."
            )
        return cifar.load(CIFAR[name], data_dir)
    if data_dir is None:
        raise RunError(
            "folder needs --data-dir, with train/<class>/ and val/<class>/ in it, or "
            "a Hugging Face data set."
        )
    size = image_size or DEFAULT_IMAGE_SIZE
    if (data_dir / hugging_face.MARK).is_file():
        return hugging_face.load(data_dir, size)
    return folder.load(data_dir, size)
