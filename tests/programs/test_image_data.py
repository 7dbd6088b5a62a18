"""Images: each format is read as it was written, damage is named, batches are exact."""

import gzip
import itertools
import struct
from pathlib import Path

import datasets
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from examples.common.runs import RunError
from examples.image_classification import data
from examples.image_classification.config import Config
from examples.image_classification.data import Arrays, Dataset, load

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(256, size=shape, dtype=np.uint8)


def everything(images):
    return images.read(np.arange(len(images.labels)))


# --- Digits and Fashion-MNIST ---


def test_digits():
    digits = load("digits", None)
    assert (len(digits.train.labels), len(digits.test.labels)) == (1437, 360)
    train = everything(digits.train)
    assert (train.shape[1:], train.dtype, train.max()) == ((8, 8, 1), np.uint8, 255)
    # Each class has its share in both parts.
    shares = [np.bincount(part.labels) for part in (digits.train, digits.test)]
    np.testing.assert_allclose(shares[1], (shares[0] + shares[1]) * 360 / 1797, atol=1)
    expected = [[(train / 255).mean()], [(train / 255).std()]]
    np.testing.assert_allclose(digits.statistics, expected, rtol=1e-6)


def idx(values):
    head = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    return head + values.tobytes()


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """The four files, one compressed, where Debian's package has them; their arrays."""
    arrays = {}
    for part, number in (("train", 12), ("t10k", 5)):
        arrays[f"{part}-images-idx3"] = noise(number, 28, 28)
        arrays[f"{part}-labels-idx1"] = np.arange(number, dtype=np.uint8) % 10
    for name, array in arrays.items():
        (tmp_path / f"{name}-ubyte").write_bytes(idx(array))
    plain = tmp_path / "train-images-idx3-ubyte"
    (tmp_path / f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    monkeypatch.setattr(data, "FASHION_DIR", tmp_path)
    return arrays


def test_fashion_mnist(fashion):
    dataset = load("fashion-mnist", None)
    for part, images in (("train", dataset.train), ("t10k", dataset.test)):
        expected = fashion[f"{part}-images-idx3"][..., None]
        np.testing.assert_array_equal(everything(images), expected)
        np.testing.assert_array_equal(images.labels, fashion[f"{part}-labels-idx1"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-images-idx3-ubyte.gz", b"no gzip"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(noise(12, 28, 28)))[:-100]),
        ("t10k-images-idx3-ubyte", idx(noise(5, 28, 28))[:-1]),
        ("t10k-images-idx3-ubyte", b""),
        ("t10k-images-idx3-ubyte", None),
        ("t10k-labels-idx1-ubyte", idx(np.arange(4, dtype=np.uint8))),
        ("t10k-labels-idx1-ubyte", idx(np.arange(6, 11, dtype=np.uint8))),
    ],
)
def test_damaged_or_missing_idx(fashion, tmp_path, name, content):
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=r"does not hold Fashion-MNIST .*http") as error:
        data.fashion_mnist(tmp_path)
    assert str(tmp_path) in str(error.value)


# --- What Hugging Face's datasets reads ---


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    load.cache_clear()


def picture(size=(40, 24), colour=(200, 100, 50)):
    return Image.new("RGB", size, colour)


def colour(part, name, file):
    """Of an image that as_folder wrote."""
    return (len(part), ord(name[0]), ord(file))


def as_folder(root, test="val"):
    """Two images of each of two classes in each part, written in no order."""
    root /= "folder"
    for part, name in itertools.product((test, "train"), ("bee", "ant")):
        (root / part / name).mkdir(parents=True)
        for file, size in (("b", (24, 40)), ("a", (40, 24))):
            path = root / part / name / f"{file}.png"
            picture(size, colour(part, name, file)).save(path)
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    return root


def as_parquet(tmp_path):
    splits = datasets.load_dataset(str(as_folder(tmp_path)))
    for name, rows in splits.items():
        rows.to_parquet(tmp_path / "parquet" / f"{name}-00000-of-00001.parquet")
    return tmp_path / "parquet"


def as_saved(tmp_path):
    datasets.load_dataset(str(as_folder(tmp_path))).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("write", [as_folder, as_parquet, as_saved])
def test_folders_parquet_files_and_saved_data_sets(tmp_path, write):
    dataset = load("folder", write(tmp_path), image_size=16)
    assert dataset.classes == 2
    for part, images in (("train", dataset.train), ("val", dataset.test)):
        np.testing.assert_array_equal(images.labels, [0, 0, 1, 1])
        pixels = everything(images)
        assert (pixels.shape, pixels.dtype) == ((4, 16, 16, 3), np.uint8)
        files = itertools.product([part], ["ant", "bee"], "ab")
        np.testing.assert_array_equal(
            pixels[:, 3, 5], list(itertools.starmap(colour, files))
        )


def test_images_are_cut_and_damaged_ones_named_when_they_are_read(tmp_path):
    """The shorter side is resized, and the middle cut out."""
    root = as_folder(tmp_path, "test")
    stripes = picture((48, 16), (255, 0, 0))
    stripes.paste((0, 255, 0), (16, 0, 32, 16))
    stripes.save(root / "train" / "ant" / "a.png")
    picture().convert("L").save(root / "train" / "ant" / "b.png")
    path = root / "train" / "bee" / "a.png"
    path.write_bytes(path.read_bytes()[:50])
    dataset = load("folder", root, image_size=16)
    image, grey = dataset.train.read(np.arange(2))
    assert (image == (0, 255, 0)).all()
    assert (grey == grey[0, 0, 0]).all()
    config = Config(out=Path(), batch_size=4)
    with pytest.raises(RunError, match=r"bee/a.png cannot be read as an image"):
        list(data.training(dataset, config, range(1)))  # in a thread


def kinds(*labels):
    """A table of images with labels."""
    kind = datasets.ClassLabel(names=["ant", "bee"])
    features = datasets.Features({"picture": datasets.Image(), "kind": kind})
    columns = {"picture": [picture()] * len(labels), "kind": list(labels)}
    return datasets.Dataset.from_dict(columns, features)


def saved(path, **splits):
    datasets.DatasetDict(splits).save_to_disk(path)
    return load("folder", path)


def test_secret_labels_of_a_test_split_are_not_looked_at(tmp_path):
    splits = {"train": kinds(0, 1), "validation": kinds(1), "test": kinds(-1)}
    assert saved(tmp_path, **splits).test.labels.tolist() == [1]


UNLABELLED = kinds(0).remove_columns("kind")


@pytest.mark.parametrize(
    ("splits", "what"),
    [
        ({"train": kinds(0)}, "must have the splits train and validation"),
        ({"test": kinds(0)}, "must have the splits train and validation"),
        ({"train": kinds(0), "test": kinds(-1)}, "test must have images, and a label"),
        ({"train": kinds(None, 1), "test": kinds(1)}, "train must have images"),
        ({"train": UNLABELLED, "test": UNLABELLED}, "ClassLabel"),
        ({"train": kinds(0), "test": UNLABELLED}, "both with"),
    ],
)
def test_data_sets_that_cannot_be_trained_with(tmp_path, splits, what):
    with pytest.raises(RunError, match=what):
        saved(tmp_path, **splits)


@pytest.mark.parametrize("names", [("label",), ("fine_label", "coarse_label")])
def test_cifar_from_the_hub(monkeypatch, names):
    classes = 10 ** len(names)
    label = datasets.ClassLabel(num_classes=classes)
    features = {"img": datasets.Image(), **dict.fromkeys(names, label)}
    images, labels = noise(3, 32, 32, 3), [classes - 1, 3, 0]
    columns = {"img": list(images), **dict.fromkeys(names, labels)}
    rows = datasets.Dataset.from_dict(columns, datasets.Features(features))
    hub = {f"uoft-cs/cifar{classes}": {"train": rows, "test": rows}}
    monkeypatch.setattr(datasets, "load_dataset", hub.__getitem__)
    dataset = load(f"cifar{classes}", None)
    np.testing.assert_array_equal(everything(dataset.train), images)
    np.testing.assert_array_equal(dataset.test.labels, labels)
    with pytest.raises(RunError, match="--data-dir is not cifar"):
        data.cifar("cifar7", f"uoft-cs/cifar{classes}")


# --- Augmentation ---


def test_crops_and_flips_are_of_the_image():
    """All crops in both directions occur, as often as they should."""
    image, n = noise(6, 6, 3), 400
    source = Arrays(np.stack([image] * n), np.zeros(n, np.int32), margin=1)
    draws = np.random.default_rng(1).random((n, data.DRAWS))
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    expected = [
        padded[top : top + 6, left : left + 6][:, ::step]
        for top, left, step in itertools.product(range(3), range(3), (1, -1))
    ]
    found, counts = np.unique(
        source.read(np.arange(n), draws), axis=0, return_counts=True
    )
    np.testing.assert_array_equal(found, np.unique(expected, axis=0))
    # Five standard errors.
    np.testing.assert_allclose(counts, n / 18, atol=5 * (n / 18) ** 0.5)


@hypothesis.given(
    draws=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4),
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
)
def test_random_region_lies_in_the_image(draws, size):
    x0, y0, x1, y1 = data.random_region(*size, draws)
    width, height = x1 - x0, y1 - y0
    assert 0 <= x0 < x1 <= size[0] * (1 + 1e-9)
    assert 0 <= y0 < y1 <= size[1] * (1 + 1e-9)
    if width < size[0] and height < size[1]:
        share = 0.08 + 0.92 * draws[0]
        np.testing.assert_allclose(width * height, share * size[0] * size[1])
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9


# --- Batches ---


def numbered(n):
    """The label of an image is its index, which all its pixels are too."""
    images = np.arange(n, dtype=np.uint8).repeat(36).reshape(n, 6, 6, 1)
    return Arrays(images, np.arange(n), margin=1)


DATASET = Dataset(numbered(23), numbered(9), 23)


def batches(first, last, **options):
    """Of four images, so that an epoch has five of them."""
    config = Config(out=Path(), batch_size=4, **options)
    return list(data.training(DATASET, config, range(first, last)))


def in_tests():
    return list(data.testing(DATASET, Config(out=Path(), batch_size=4)))


def assert_same(found, expected, rows=slice(None)):
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        for name, value in batch.items():
            np.testing.assert_array_equal(value, other[name][rows])


def labels_of(found):
    """All in one list; each image is that of its label."""
    for batch in found:
        assert (batch["image"] == batch["label"][:, None, None, None]).all()
    return np.concatenate([batch["label"] for batch in found]).tolist()


def test_epochs_have_each_image_once_in_an_order_of_their_own():
    """No order comes back, of any seed."""
    orders = set()
    for seed in range(3):
        found = batches(0, 15, seed=seed)
        orders |= {tuple(labels_of(found[i : i + 5])) for i in (0, 5, 10)}
    assert [len(set(order)) for order in orders] == [20] * 9


def test_batches_are_those_of_their_steps_and_processes_hold_their_rows(monkeypatch):
    """So resuming at any step is going on."""
    whole = batches(0, 13, augment=True)
    for first in (1, 5, 12, 13):
        assert_same(batches(first, 13, augment=True), whole[first:])
    tested = in_tests()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index, rows in enumerate((slice(2), slice(2, 4))):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        assert_same(batches(3, 4, augment=True), whole[3:4], rows)
        assert_same(in_tests(), tested, rows)


def test_testing_has_all_images_in_order_and_is_filled_up():
    found = in_tests()
    weights = np.concatenate([batch["weight"] for batch in found])
    assert weights.tolist() == [1] * 9 + [0] * 3
    assert labels_of(found)[:9] == list(range(9))
