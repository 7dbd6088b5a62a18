"""Fashion-MNIST: the four files in the IDX format, plain or compressed with gzip."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from examples.common.runs import RunError
from examples.image_classification.data.sources import Arrays, Dataset

URL = "https://github.com/zalandoresearch/fashion-mnist"
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

CLASSES = 10


def load(data_dir: Path | None = None) -> Dataset:
    """Reads the files from a folder, by default that of the Debian package."""
    data_dir = DEBIAN_DIR if data_dir is None else data_dir
    train, test = (_source(data_dir, part) for part in ("train", "t10k"))
    return Dataset(train, test, CLASSES, (28, 28, 1))


def _source(data_dir: Path, part: str) -> Arrays:
    images = _read_idx(data_dir, f"{part}-images-idx3-ubyte", (None, 28, 28))
    labels = _read_idx(data_dir, f"{part}-labels-idx1-ubyte", (len(images),))
    if labels.max() >= CLASSES:
        raise RunError(
            f"{data_dir}: {part} labels must be from 0 to 9, got {labels.max()}."
        )
    return Arrays(images[..., None], labels.astype(np.int32), margin=2, flip=True)


def _read_idx(
    data_dir: Path, name: str, expected: tuple[int | None, ...]
) -> np.ndarray:
    """Bytes as an array of the expected shape, in which None stands for any length."""
    found = [p for p in (data_dir / name, data_dir / f"{name}.gz") if p.is_file()]
    if not found:
        raise RunError(
            f"no {name} or {name}.gz in {data_dir}: get it from {URL} or Debian's "
            "package dataset-fashion-mnist, and name its folder with --data-dir."
        )
    path = found[0]
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        # The type, 8 for unsigned bytes, the number of dimensions, and their lengths.
        kind, *shape = struct.unpack_from(f">{1 + len(expected)}I", content)
        values = np.frombuffer(content, np.uint8, offset=4 * (1 + len(shape)))
        if kind != (8 << 8) + len(expected):
            raise ValueError(f"its magic number is {kind}")
        if any(m not in (None, n) for n, m in zip(shape, expected, strict=True)):
            raise ValueError(f"expected the shape {expected}, found {shape}")
        return values.reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}; get it from {URL}.") from None
