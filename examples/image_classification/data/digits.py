"""Handwritten digits of 8x8 pixels, which come with scikit-learn."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from examples.image_classification.data.sources import Arrays, Dataset

TEST_IMAGES = 360


def load() -> Dataset:
    """1,437 images to train with and 360 to test, split by class, always the same."""
    digits = load_digits()
    # Ink goes from 0 to 16.
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int32)
    parts = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    # Not mirrored: a mirrored digit is not a digit.
    train, test = (Arrays(images[part], labels[part], margin=1) for part in parts)
    return Dataset(train, test, 10, (8, 8, 1))
