"""Mean and standard deviation of training images, to normalise with on the device."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from examples.image_classification.data.dataset import Source

SAMPLE = 10_000
CHUNK = 250


def statistics(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, float32 [c], with 255 as 1.

    Of a fixed sample of up to 10,000 images. A deviation below one grey level, as
    images that are all the same would have, counts as one: it will be divided by.
    """
    indices = np.arange(len(source))
    if len(source) > SAMPLE:
        rng = np.random.default_rng(0)
        indices = np.sort(rng.choice(len(source), SAMPLE, replace=False))
    chunks = np.array_split(indices, -(-len(indices) // CHUNK))
    with ThreadPoolExecutor() as threads:
        sums = list(threads.map(lambda chunk: _sums(source.images(chunk)), chunks))
    number, total, squares = (np.sum(x, axis=0) for x in zip(*sums, strict=True))
    mean = total / number
    variance = squares / number - mean**2
    std = np.sqrt(np.maximum(variance, 1.0))
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


def _sums(images: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of values of a channel, their sum and that of their squares: exact."""
    pixels = images.reshape(-1, images.shape[-1])
    # How often each grey level occurs, so that no copy is of a larger type.
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
    levels = np.arange(256)
    return len(pixels), counts @ levels, counts @ levels**2
