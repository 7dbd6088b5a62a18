"""Fashion-MNIST: the four files in the IDX format, plain or compressed with gzip."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from examples.common.runs import RunError
from examples.image_classification.data.dataset import (
    ArraySource,
    Dataset,
    checked_labels,
    damaged,
    one_line,
)

URL = "https://github.com/zalandoresearch/fashion-mnist"
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIZE = 28


def load(data_dir: Path | None = None) -> Dataset:
    """Reads the files from a folder, by default that of the Debian package."""
    data_dir = DEBIAN_DIR if data_dir is None else data_dir
    return Dataset(
        name="fashion-mnist",
        train=_source(data_dir, "train"),
        test=_source(data_dir, "t10k"),
        class_names=CLASS_NAMES,
        image_shape=(SIZE, SIZE, 1),
    )


def _source(data_dir: Path, part: str) -> ArraySource:
    images_path = _find(data_dir, f"{part}-images-idx3-ubyte")
    labels_path = _find(data_dir, f"{part}-labels-idx1-ubyte")
    images = _read_idx(images_path, dimensions=3)
    if images.shape[1:] != (SIZE, SIZE):
        found = "x".join(map(str, images.shape[1:]))
        raise damaged(images_path, f"expected images of 28x28, found {found}", URL)
    labels = _read_idx(labels_path, dimensions=1)
    if len(labels) != len(images):
        what = f"expected {len(images)} labels, one for each image, found {len(labels)}"
        raise damaged(labels_path, what, URL)
    labels = checked_labels(labels, len(CLASS_NAMES), labels_path)
    return ArraySource(images[..., None], labels)


def _find(data_dir: Path, name: str) -> Path:
    for path in (data_dir / name, data_dir / f"{name}.gz"):
        if path.is_file():
            return path
    raise RunError(
        f"no {name} or {name}.gz in {data_dir}: get it from {URL} or Debian's package "
        "dataset-fashion-mnist, and name its folder with --data-dir."
    )


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Bytes as an array: a magic number, the sizes, then the values."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, f"cannot be read ({one_line(error)})", URL) from None
    start = 4 * (1 + dimensions)
    if len(content) < start:
        what = f"expected a header of {start} bytes, found {len(content)}"
        raise damaged(path, what, URL)
    magic, *shape = struct.unpack(f">{1 + dimensions}I", content[:start])
    # The type, 8 for unsigned bytes, and the number of dimensions.
    expected = (8 << 8) + dimensions
    if magic != expected:
        what = f"expected magic number {expected}, found {magic}"
        raise damaged(path, what, URL)
    if len(content) - start != math.prod(shape):
        sizes = "x".join(map(str, shape))
        what = f"expected {sizes} bytes, found {len(content) - start}"
        raise damaged(path, what, URL)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
