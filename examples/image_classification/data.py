"""Data sets by name, and batches of them.

A batch is a function of the seed and the step alone: a resumed run gets the batches
that it would have had, and several processes divide the batch that one would read.
"""

import dataclasses
import functools
import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import grain
import jax
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageOps

from examples.common.runs import RunError
from examples.image_classification.config import Config, DataName

FASHION_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""
TEST_SPLITS = ("validation", "val", "test")
"""In order of preference: the labels of "test" are often secret."""
DRAWS = 5
"""Random numbers, uniform in [0, 1), that decide how one image is augmented."""

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Images in memory, uint8 [n, h, w, c], and their labels, int32 [n]."""

    images: np.ndarray
    labels: np.ndarray
    margin: int
    """By how many pixels augmented images are shifted at most."""
    flip: bool = True
    """Whether half of the augmented images are mirrored, left to right."""

    def read(self, indices: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """The images, or shifted and mirrored ones, as the rows of `draws` say."""
        images = self.images[indices]
        if draws is None:
            return images
        border = (self.margin, self.margin)
        padded = np.pad(images, ((0, 0), border, border, (0, 0)))
        crops = sliding_window_view(padded, images.shape[1:3], (1, 2))
        top, left = (draws[:, :2] * (2 * self.margin + 1)).astype(int).T
        images = np.moveaxis(crops[np.arange(len(crops)), top, left], 1, -1)
        mirrored = self.flip & (draws[:, 4] < 0.5)
        return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images of any size, which are decoded and resized when they are read."""

    picture: Callable[[int], Image.Image]
    """The image of an index."""
    labels: np.ndarray
    size: int

    def read(self, indices: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """Their middles, or regions that the rows of `draws` choose, some mirrored."""
        size, images = (self.size, self.size), []
        for row, index in enumerate(indices):
            image = self.picture(int(index))
            if draws is None:
                image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
            else:
                region = random_region(*image.size, draws[row])
                image = image.resize(size, Image.Resampling.BILINEAR, region)
                image = ImageOps.mirror(image) if draws[row, 4] < 0.5 else image
            images.append(np.asarray(image))
        return np.stack(images)


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


# --- Data sets ---


@dataclasses.dataclass(frozen=True)
class Dataset:
    train: Arrays | Pictures
    test: Arrays | Pictures
    classes: int

    @functools.cached_property
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel, with 255 as 1.

        They are of a fixed sample of the training images, of some 20 million values. A
        deviation below one grey level counts as one: it is a divisor.
        """
        sample = np.random.default_rng(0).permutation(len(self.train.labels))
        number = 1 + 20_000_000 // self.train.read(sample[:1]).size
        images = self.train.read(sample[:number]) / 255
        std = np.maximum(images.std((0, 1, 2)), 1 / 255)
        return images.mean((0, 1, 2)).astype(np.float32), std.astype(np.float32)


@functools.lru_cache(maxsize=1)
def load(
    name: DataName, data_dir: Path | None, image_size: int | None = None
) -> Dataset:
    """The data set `name`, from `data_dir`; the runs of a study read it once."""
    match name:
        case "digits":
            return digits()
        case "fashion-mnist":
            return fashion_mnist(data_dir or FASHION_DIR)
        case "folder":
            return hugging_face(str(data_dir), image_size or 224)
        case _:
            return cifar(name, str(data_dir or f"uoft-cs/{name}"))


def digits() -> Dataset:
    """1,437 digits of scikit-learn to train with and 360 to test, split by class."""
    # Imported where they are needed: scikit-learn and datasets take seconds.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    # Ink goes from 0 to 16.
    images = np.rint(data.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = data.target.astype(np.int32)
    parts = train_test_split(
        np.arange(len(images)), test_size=360, stratify=labels, random_state=0
    )
    # Not mirrored: a mirrored digit is not a digit.
    train, test = (
        Arrays(images[part], labels[part], margin=1, flip=False) for part in parts
    )
    return Dataset(train, test, 10)


def fashion_mnist(folder: Path) -> Dataset:
    """Four files in the IDX format, plain or compressed with gzip."""

    def idx(name: str, header: int, *shape: int) -> np.ndarray:
        path = folder / f"{name}-ubyte"
        if path.exists():
            content = path.read_bytes()
        else:
            content = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
        return np.frombuffer(content, np.uint8, offset=header).reshape(-1, *shape)

    def part(name: str) -> Arrays:
        images = idx(f"{name}-images-idx3", 16, 28, 28, 1)
        labels = idx(f"{name}-labels-idx1", 8).ravel().astype(np.int32)
        if len(images) != len(labels) or labels.max() > 9:
            raise ValueError(f"{name} has not a label from 0 to 9 for each image")
        return Arrays(images, labels, margin=2)

    try:
        return Dataset(part("train"), part("t10k"), 10)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise RunError(
            f"{folder} does not hold Fashion-MNIST ({error}): get its four files from "
            "https://github.com/zalandoresearch/fashion-mnist or Debian's package "
            "dataset-fashion-mnist, and name their folder with --data-dir."
        ) from None


def cifar(name: str, place: str) -> Dataset:
    """CIFAR-10 or CIFAR-100, decoded once, as images this small can be."""
    pictures = hugging_face(place, 32)
    if pictures.classes != int(name.removeprefix("cifar")):
        raise RunError(f"--data-dir is not {name}: it has {pictures.classes} classes.")
    train, test = (
        Arrays(part.read(np.arange(len(part.labels))), part.labels, margin=4)
        for part in (pictures.train, pictures.test)
    )
    return Dataset(train, test, pictures.classes)


def hugging_face(place: str, size: int) -> Dataset:
    """Whatever Hugging Face `datasets` reads, and what `save_to_disk` wrote.

    The images are the first column of their type, and so are the labels.
    """
    import datasets

    saved = (Path(place) / "dataset_dict.json").is_file()
    splits = (datasets.load_from_disk if saved else datasets.load_dataset)(place)
    features = splits["train"].features if "train" in splits else {}
    test = next((name for name in TEST_SPLITS if name in splits), "train")
    image, label = (
        next((name for name, x in features.items() if isinstance(x, kind)), None)
        for kind in (datasets.Image, datasets.ClassLabel)
    )
    others = splits[test].features if features else {}
    if (
        test == "train"
        or None in (image, label)
        or any(others.get(name) != features[name] for name in (image, label))
    ):
        raise RunError(
            f"{place} must have the splits train and validation (or test), both with "
            "the same column of type Image and one of type ClassLabel; it has the "
            f"splits {', '.join(splits)}, and in train {', '.join(features) or 'none'}."
        )

    def part(split: str) -> Pictures:
        labels = np.asarray(splits[split][label][:])
        # A missing label changes the type of the array; -1 stands for a secret label.
        if labels.dtype.kind != "i" or labels.min() < 0:
            raise RunError(f"{place}: {split} must have images, and a label for each.")
        rows = splits[split].select_columns([image])
        rows = rows.cast_column(image, datasets.Image(decode=False))

        def picture(index: int) -> Image.Image:
            encoded = rows[index][image] or {}
            name = encoded.get("path") or f"image {index} of {split} of {place}"
            try:
                content = encoded["bytes"]
                with Image.open(name if content is None else BytesIO(content)) as file:
                    return ImageOps.exif_transpose(file).convert("RGB")
            except Exception as error:  # of a damaged file, Pillow raises many types
                raise RunError(f"{name} cannot be read as an image: {error}.") from None

        return Pictures(picture, labels.astype(np.int32), size)

    return Dataset(part("train"), part(test), features[label].num_classes)


# --- Batches ---


def training(dataset: Dataset, config: Config, steps: range) -> Iterator[Batch]:
    """This process's rows of the batches of some steps.

    "image" is uint8 [n, h, w, c], "label" int32 [n]. Images that do not fill a batch
    are left out of an epoch.
    """
    # Not the seed itself: grain adds the epoch to it, so that the first epoch of seed 1
    # would be the second one of seed 0.
    order_seed, augment_seed = np.random.SeedSequence(config.seed).generate_state(2)
    images, rows = dataset.train, _own_rows(config)

    def read(indices: np.ndarray, rng: np.random.Generator) -> Batch:
        mine = indices[rows]
        # Drawn for the whole batch, so that it does not depend on the processes.
        draws = rng.random((len(indices), DRAWS))[rows]
        image = images.read(mine, draws if config.augment else None)
        return {"image": image, "label": images.labels[mine]}

    batches = (
        grain.MapDataset.range(len(images.labels))
        .shuffle(seed=int(order_seed))
        .batch(config.batch_size, drop_remainder=True)
        .repeat()
        .random_map(read, seed=int(augment_seed))
    )
    return _read_ahead(batches[steps.start : steps.stop])


def testing(dataset: Dataset, config: Config) -> Iterator[Batch]:
    """All test images once, in order and not augmented.

    The last batch is padded with copies of the last image. "weight", float32 [n], is 0
    for the copies and 1 for all other images.
    """
    images, size, rows = dataset.test, config.batch_size, _own_rows(config)
    last = len(images.labels) - 1

    def read(step: int) -> Batch:
        indices = (step * size + np.arange(size))[rows]
        mine = np.minimum(indices, last)
        weight = (indices <= last).astype(np.float32)
        return {
            "image": images.read(mine),
            "label": images.labels[mine],
            "weight": weight,
        }

    return _read_ahead(grain.MapDataset.range(last // size + 1).map(read))


def _own_rows(config: Config) -> slice:
    size = config.batch_size // jax.process_count()
    return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def _read_ahead(batches: grain.MapDataset) -> Iterator[Batch]:
    # One batch per thread: grain's default, 500 elements, is meant for single images.
    options = grain.ReadOptions(num_threads=16, prefetch_buffer_size=16)
    return iter(batches.to_iter_dataset(options))
