"""Handwritten digits of 8x8 pixels, which come with scikit-learn."""

import numpy as np

from examples.common.runs import RunError
from examples.image_classification.data.dataset import ArraySource, Dataset

TEST_IMAGES = 360


def load() -> Dataset:
    """1,437 images to train with and 360 to test, split by class, always the same."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise RunError("digits need scikit-learn: pip install scikit-learn.") from None
    digits = load_digits()
    # Ink goes from 0 to 16.
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    return Dataset(
        name="digits",
        train=ArraySource(images[train], labels[train]),
        test=ArraySource(images[test], labels[test]),
        class_names=tuple("0123456789"),
        image_shape=(8, 8, 1),
    )
