"""Mean and standard deviation of training images, to normalise with on the device."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from examples.image_classification.data.sources import Source

SAMPLE = 10_000
CHUNK = 50


def statistics(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, float32 [c], with 255 as 1.

    They are computed over a fixed sample of up to 10,000 images. A standard deviation
    below one grey level (images of a single colour) counts as one: it is a divisor.
    """
    indices = np.arange(len(source.labels))
    if len(indices) > SAMPLE:
        rng = np.random.default_rng(0)
        indices = np.sort(rng.choice(len(indices), SAMPLE, replace=False))

    def sums(chunk: np.ndarray) -> np.ndarray:
        """Sums over pixels of ones, values and squares: exact, as they are integers."""
        images = source.read(chunk).astype(np.float64)
        return np.stack([(images**power).sum((0, 1, 2)) for power in range(3)])

    chunks = np.array_split(indices, -(-len(indices) // CHUNK))
    with ThreadPoolExecutor() as threads:
        number, total, squares = np.sum(list(threads.map(sums, chunks)), axis=0)
    mean = total / number
    std = np.sqrt(np.maximum(squares / number - mean**2, 1.0))
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)
