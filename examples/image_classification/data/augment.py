"""Random regions, crops, flips and mixup partners of a batch.

All of it is drawn for the whole batch, then applied to some of its rows: what a row
becomes does not depend on which process holds it.
"""

import dataclasses

import numpy as np

from examples.image_classification.data.decode import Region

DEFAULT_IMAGE_SIZE = 224

RATIOS = (3 / 4, 4 / 3)
"""Of regions, from the narrowest to the widest."""


@dataclasses.dataclass(frozen=True)
class Augment:
    least_area: float = 1.0
    """Of an encoded image, the least share that is cut out; 1 for the usual middle.

    Shares are uniform up to 1, widths over heights log-uniform: Szegedy et al.,
    https://arxiv.org/abs/1409.4842, 2014.
    """
    crop: int = 0
    """Pixels of black put around an image, before a part of its size is cut out."""
    flip: bool = False
    """Whether half of the images are mirrored, left to right."""
    mixup: float = 0.0
    """Alpha of the Beta distribution of mixing weights; 0 for no mixup."""


@dataclasses.dataclass(frozen=True)
class Draws:
    """What is drawn for each row of a batch."""

    regions: list[Region]
    """Empty if images are taken as usual."""
    offsets: np.ndarray
    """Upper left corner of what is cut out of the padded image, [n, 2]."""
    mirrored: np.ndarray
    partners: np.ndarray
    """Row that each row is mixed with: a permutation."""
    weights: np.ndarray
    """Of the partner, float32."""


def default_augment(name: str) -> Augment:
    """What is usual for the data set `name`, without mixup."""
    match name:
        case "digits":
            return Augment(crop=1)  # a mirrored digit is none
        case "fashion-mnist":
            return Augment(crop=2, flip=True)
        case "cifar10" | "cifar100":
            return Augment(crop=4, flip=True)
        case "folder":
            return Augment(least_area=0.08, flip=True)
    raise ValueError(f"no data set {name!r}")


def draw(augment: Augment, number: int, rng: np.random.Generator) -> Draws:
    """Draws for a batch of `number` images.

    Crops and flips are the same with mixup as without: what it needs is drawn last.
    """
    offsets = rng.integers(2 * augment.crop + 1, size=(number, 2))
    mirrored = (rng.random(number) < 0.5) & augment.flip
    regions = _regions(augment.least_area, number, rng)
    if augment.mixup:
        partners = rng.permutation(number)
        weights = rng.beta(augment.mixup, augment.mixup, number).astype(np.float32)
    else:
        partners = np.arange(number)
        weights = np.zeros(number, np.float32)
    return Draws(regions, offsets, mirrored, partners, weights)


def _regions(least_area: float, number: int, rng: np.random.Generator) -> list[Region]:
    if least_area == 1:
        return []
    areas = rng.uniform(least_area, 1, number)
    ratios = np.exp(rng.uniform(np.log(RATIOS[0]), np.log(RATIOS[1]), number))
    columns = (areas, ratios, *rng.random((2, number)))
    return [Region(*map(float, row)) for row in zip(*columns, strict=True)]


def apply(
    images: np.ndarray, augment: Augment, draws: Draws, rows: np.ndarray
) -> np.ndarray:
    """Crops and flips `images`, which are these rows of the batch."""
    if augment.crop:
        height, width = images.shape[1:3]
        margin = (augment.crop, augment.crop)
        padded = np.pad(images, ((0, 0), margin, margin, (0, 0)))
        corners = draws.offsets[rows]
        images = np.empty_like(images)
        for image, whole, (top, left) in zip(images, padded, corners, strict=True):
            image[...] = whole[top : top + height, left : left + width]
    if augment.flip:
        mirrored = draws.mirrored[rows, None, None, None]
        images = np.where(mirrored, images[:, :, ::-1], images)
    return images
