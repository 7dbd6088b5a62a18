"""CIFAR-10 and CIFAR-100: the archives for Python, extracted or not."""

import dataclasses
import io
import pickle
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from examples.common.runs import RunError
from examples.image_classification.data.dataset import (
    ArraySource,
    Dataset,
    checked_labels,
    damaged,
    one_line,
)

URL = "https://www.cs.toronto.edu/~kriz/cifar.html"
SIZE = 32


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where one of the two data sets has what."""

    name: str
    folder: str
    file: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    class_names: bytes
    num_classes: int


CIFAR10 = Archive(
    name="cifar10",
    folder="cifar-10-batches-py",
    file="cifar-10-python.tar.gz",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    labels=b"labels",
    class_names=b"label_names",
    num_classes=10,
)
CIFAR100 = Archive(
    name="cifar100",
    folder="cifar-100-python",
    file="cifar-100-python.tar.gz",
    train=("train",),
    test="test",
    meta="meta",
    labels=b"fine_labels",
    class_names=b"fine_label_names",
    num_classes=100,
)


def load(archive: Archive, data_dir: Path) -> Dataset:
    """Reads the archive, its folder, or whichever of them lies in `data_dir`."""
    place = _find(archive, data_dir)
    files = _read(archive, place)
    meta = _unpickle(files[archive.meta], place / archive.meta)
    class_names = meta.get(archive.class_names)
    if not isinstance(class_names, list) or len(class_names) != archive.num_classes:
        what = f"expected {archive.num_classes} names of classes"
        raise damaged(place / archive.meta, what, URL)
    parts = [_part(archive, files[name], place / name) for name in archive.train]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Dataset(
        name=archive.name,
        train=ArraySource(images, labels),
        test=ArraySource(*_part(archive, files[archive.test], place / archive.test)),
        class_names=tuple(_text(name) for name in class_names),
        image_shape=(SIZE, SIZE, 3),
    )


def _find(archive: Archive, data_dir: Path) -> Path:
    """The folder or the file that holds the data."""
    if data_dir.is_file() or (data_dir / archive.meta).is_file():
        return data_dir
    for place in (data_dir / archive.folder, data_dir / archive.file):
        if place.exists():
            return place
    raise RunError(
        f"no {archive.folder} or {archive.file} in {data_dir}: get it from {URL} and "
        "name its folder with --data-dir."
    )


def _read(archive: Archive, place: Path) -> dict[str, bytes]:
    """The files of the data set, by name."""
    wanted = (*archive.train, archive.test, archive.meta)
    files = {}
    try:
        if place.is_dir():
            for name in wanted:
                if (place / name).is_file():
                    files[name] = (place / name).read_bytes()
        else:
            with tarfile.open(place) as tar:
                for member in tar:
                    name = PurePosixPath(member.name).name
                    content = tar.extractfile(member) if name in wanted else None
                    if content is not None:
                        files[name] = content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise damaged(place, f"cannot be read ({one_line(error)})", URL) from None
    for name in wanted:
        if name not in files:
            raise damaged(place, f"expected {name} in it", URL)
    return files


def _part(archive: Archive, content: bytes, where: Path) -> tuple[np.ndarray, ...]:
    """Images [n, 32, 32, 3] and labels of one file."""
    part = _unpickle(content, where)
    values = part.get(b"data")
    size = 3 * SIZE * SIZE
    if not isinstance(values, np.ndarray) or values.dtype != np.uint8:
        raise damaged(where, "expected images as an array of bytes", URL)
    if values.ndim != 2 or values.shape[1] != size:
        what = f"expected images of shape (n, {size}), found {values.shape}"
        raise damaged(where, what, URL)
    labels = checked_labels(part.get(archive.labels), archive.num_classes, where)
    if len(labels) != len(values):
        what = f"expected {len(values)} labels, one for each image, found {len(labels)}"
        raise damaged(where, what, URL)
    images = values.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _unpickle(content: bytes, where: Path) -> dict[Any, Any]:
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # what a damaged pickle may raise is not bounded
        raise damaged(where, f"cannot be read ({one_line(error)})", URL) from None
    if not isinstance(found, dict):
        raise damaged(where, "expected a dictionary", URL)
    return found


def _dtype(code: Any, align: Any = False, copy: Any = False) -> np.dtype:
    # The archives have 0 and 1 here, which NumPy 2.4 warns of.
    return np.dtype(code, bool(align), bool(copy))


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # of NumPy 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
}


class _Unpickler(pickle.Unpickler):
    """Admits arrays and what needs no name: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None
