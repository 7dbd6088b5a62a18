"""Images: each format is read as it was written, and damage is named."""

import gzip
import struct
from pathlib import Path

import datasets
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from examples.common.runs import RunError
from examples.image_classification.data import (
    Loader,
    fashion_mnist,
    hugging_face,
    load,
)

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(256, size=shape, dtype=np.uint8)


def everything(source):
    return source.read(np.arange(len(source.labels)))


# --- Digits ---


def test_digits():
    digits = load("digits", None)
    assert (len(digits.train.labels), len(digits.test.labels)) == (1437, 360)
    assert digits.image_shape == everything(digits.train).shape[1:] == (8, 8, 1)
    assert digits.train.labels.dtype == np.int32
    images = np.concatenate([everything(digits.train), everything(digits.test)])
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    assert len(np.unique(images)) == 17
    # Each class has its share in both parts.
    shares = [np.bincount(part.labels) for part in (digits.train, digits.test)]
    np.testing.assert_allclose(shares[1], (shares[0] + shares[1]) * 360 / 1797, atol=1)
    again = load("digits", None)
    np.testing.assert_array_equal(everything(again.test), everything(digits.test))


# --- Fashion-MNIST ---


def idx(values, magic=None):
    magic = 0x800 + values.ndim if magic is None else magic
    return struct.pack(f">{1 + values.ndim}I", magic, *values.shape) + values.tobytes()


def write_fashion(folder, suffix="", **changed):
    """The four files, with the content of some changed; the arrays that are in them."""
    arrays = {}
    for part, number in (("train", 12), ("t10k", 5)):
        arrays[f"{part}_images"] = noise(number, 28, 28)
        arrays[f"{part}_labels"] = np.arange(number, dtype=np.uint8) % 10
    for name, array in arrays.items():
        part, what = name.split("_")
        kind = "idx3" if what == "images" else "idx1"
        content = changed.get(name, idx(array))
        content = gzip.compress(content) if suffix else content
        (folder / f"{part}-{what}-{kind}-ubyte{suffix}").write_bytes(content)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist(tmp_path, monkeypatch, suffix):
    arrays = write_fashion(tmp_path, suffix)
    # Where Debian's package has the files.
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path)
    for data_dir in (tmp_path, None):
        dataset = load("fashion-mnist", data_dir)
        for part, source in (("train", dataset.train), ("t10k", dataset.test)):
            images = arrays[f"{part}_images"][..., None]
            np.testing.assert_array_equal(everything(source), images)
            np.testing.assert_array_equal(source.labels, arrays[f"{part}_labels"])
            assert source.labels.dtype == np.int32
        assert (dataset.image_shape, dataset.classes) == ((28, 28, 1), 10)


IMAGES = np.zeros((12, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("train_images", idx(IMAGES, 2049), "magic number is 2049"),
        ("train_images", idx(IMAGES)[:-1], "size 9407"),
        ("train_images", idx(IMAGES)[:10], "16 bytes"),
        ("train_images", idx(IMAGES[:, 1:]), "28, 28.*27, 28"),
        ("t10k_labels", idx(IMAGES[0, 0, :4]), "shape .5,., found .4"),
        ("t10k_labels", idx(IMAGES[0, 0, :5] + 10), "from 0 to 9, got 10"),
    ],
)
def test_damaged_idx(tmp_path, name, content, what):
    write_fashion(tmp_path, **{name: content})
    part = name.split("_")[0]
    with pytest.raises(RunError, match=f"{part}.*{what}") as error:
        load("fashion-mnist", tmp_path)
    assert str(tmp_path) in str(error.value)


def test_damaged_gzip(tmp_path):
    write_fashion(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[:-100], b"no gzip", whole[:40] + b"\xff" * 40 + whole[80:]):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"ubyte.gz is damaged: .*http"):
            load("fashion-mnist", tmp_path)


def test_missing_idx(tmp_path):
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(RunError, match=r"no t10k-labels-idx1-ubyte or .*http"):
        load("fashion-mnist", tmp_path)


# --- What Hugging Face's datasets reads ---


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


def picture(size=(40, 24), colour=(200, 100, 50)):
    return Image.new("RGB", size, colour)


def colour(part, name, file):
    """Of an image that write_images wrote."""
    return (40 if name == "ant" else 210, 90 if file == "a" else 5, len(part))


def write_images(root, test="val"):
    """Two images of each of two classes in each part, written in no order."""
    for part in (test, "train"):
        for name in ("bee", "ant"):
            (root / part / name).mkdir(parents=True)
            for file, size in (("b", (24, 40)), ("a", (40, 24))):
                path = root / part / name / f"{file}.png"
                picture(size, colour(part, name, file)).save(path)
    # Neither of these is an image.
    (root / "train" / "ant" / "notes.txt").write_text("ants")
    (root / "train" / "ant" / "._a.png").write_bytes(b"")
    return root


def as_folder(tmp_path):
    return write_images(tmp_path / "folder")


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
    assert (dataset.image_shape, dataset.classes) == ((16, 16, 3), 2)
    for part, source in (("train", dataset.train), ("val", dataset.test)):
        np.testing.assert_array_equal(source.labels, [0, 0, 1, 1])
        assert source.labels.dtype == np.int32
        images = everything(source)
        assert (images.shape, images.dtype) == ((4, 16, 16, 3), np.uint8)
        pixels = [colour(part, name, file) for name in ("ant", "bee") for file in "ab"]
        np.testing.assert_array_equal(images[:, 3, 5], pixels)
        backwards = source.read(np.array([3, 1]))
        np.testing.assert_array_equal(backwards, images[[3, 1]])


def test_test_images_in_a_folder_named_test(tmp_path):
    dataset = load("folder", write_images(tmp_path, "test"))
    assert dataset.image_shape == (224, 224, 3)
    assert len(dataset.test.labels) == 4


def test_shorter_side_is_resized_and_the_middle_cut_out(tmp_path):
    write_images(tmp_path)
    stripes = picture((48, 16), (255, 0, 0))
    stripes.paste((0, 255, 0), (16, 0, 32, 16))
    stripes.save(tmp_path / "train" / "ant" / "a.png")
    for size, inside in ((16, slice(None)), (8, slice(1, -1))):
        source = load("folder", tmp_path, image_size=size).train
        (image,) = source.read(np.array([0]))
        assert (image[:, inside] == (0, 255, 0)).all()


@hypothesis.given(
    draws=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4),
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
)
def test_region_lies_in_the_image(draws, size):
    x0, y0, x1, y1 = hugging_face.random_region(*size, draws)
    width, height = x1 - x0, y1 - y0
    assert 0 <= x0 < x1 <= size[0] * (1 + 1e-9)
    assert 0 <= y0 < y1 <= size[1] * (1 + 1e-9)
    assert width * height <= size[0] * size[1] * (1 + 1e-9)
    if width < size[0] and height < size[1]:
        share = 0.08 + 0.92 * draws[0]
        np.testing.assert_allclose(width * height, share * size[0] * size[1])
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9
    # From one border to the other.
    np.testing.assert_allclose(x0, draws[2] * (size[0] - width), atol=1e-9)
    np.testing.assert_allclose(y0, draws[3] * (size[1] - height), atol=1e-9)


def test_region_is_cut_out_resized_and_mirrored(tmp_path):
    write_images(tmp_path)
    # Each pixel has the column in red and the row in green.
    columns, rows = np.meshgrid(np.arange(80), np.arange(60))
    places = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)
    Image.fromarray(places).save(tmp_path / "train" / "ant" / "a.png")
    source = load("folder", tmp_path, image_size=16).train
    draws = np.array([[0.2, 0.7, 0.3, 0.7, 0.9], [0.2, 0.7, 0.3, 0.7, 0.1]])
    image, mirrored = source.augmented(np.array([0, 0]), draws)
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    x0, y0, x1, y1 = hugging_face.random_region(80, 60, draws[0])
    centres = (np.arange(16) + 0.5) / 16
    columns, rows = np.meshgrid(
        x0 + (x1 - x0) * centres - 0.5, y0 + (y1 - y0) * centres - 0.5
    )
    expected = np.stack([columns, rows, 0 * rows], -1)[1:-1, 1:-1]
    np.testing.assert_allclose(image[1:-1, 1:-1], expected, atol=1)


def test_images_of_other_colours(tmp_path):
    write_images(tmp_path)
    for mode in ("L", "RGBA", "P", "1"):
        picture().convert(mode).save(tmp_path / "train" / "ant" / "b.png")
        source = load("folder", tmp_path, image_size=8).train
        assert source.read(np.array([1])).shape == (1, 8, 8, 3)


def test_damaged_image_is_named_when_it_is_read(tmp_path):
    write_images(tmp_path)
    path = tmp_path / "train" / "bee" / "a.png"
    whole = path.read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        path.write_bytes(content)
        dataset = load("folder", tmp_path, image_size=16)
        with pytest.raises(RunError, match=r"bee/a.png cannot be read as an image"):
            dataset.train.read(np.array([2]))
    # In a thread of a loader too.
    with pytest.raises(RunError, match="bee/"):
        list(Loader(dataset, 4, seed=0).training(0, 1))


def table(images, features, **columns):
    features = datasets.Features({"picture": datasets.Image(), **features})
    return datasets.Dataset.from_dict({"picture": images, **columns}, features)


def kinds(*labels, **more):
    """A table of images with labels; more columns of labels on request."""
    images = [picture()] * len(labels)
    kind = datasets.ClassLabel(names=["ant", "bee"])
    features = dict.fromkeys(("kind", *more), kind)
    return table(images, features, kind=list(labels), **more)


def save(path, **splits):
    datasets.DatasetDict(splits).save_to_disk(path)
    return path


def test_missing_image_is_named_when_it_is_read(tmp_path):
    kind = {"kind": datasets.ClassLabel(names=["ant"])}
    rows = table([picture(), None], kind, kind=[0, 0])
    source = load("folder", save(tmp_path, train=rows, test=rows), image_size=8).train
    with pytest.raises(RunError, match=r"image 1 of train .* cannot be read"):
        source.read(np.array([0, 1]))


def test_secret_labels_of_a_test_split_are_not_looked_at(tmp_path):
    secret = kinds(-1, -1)
    path = save(tmp_path, train=kinds(0, 1), validation=kinds(1), test=secret)
    assert load("folder", path, image_size=8).test.labels.tolist() == [1]


def test_name_on_the_hub(monkeypatch):
    hub = {"owner/pictures": {"train": kinds(0, 1), "test": kinds(1, 0, 1)}}
    monkeypatch.setattr(datasets, "load_dataset", hub.__getitem__)
    dataset = load("folder", Path("owner/pictures"), image_size=8)
    assert dataset.test.labels.tolist() == [1, 0, 1]
    assert everything(dataset.train).shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("splits", "what"),
    [
        ({"train": (0, 1)}, r"train and validation \(or test\), it has train"),
        ({"train": (0, 1), "test": (-1, -1)}, "test must have images, and a label"),
        ({"train": (None, 1), "test": (1,)}, "train must have images, and a label"),
        ({"train": (0, 0), "test": (1,)}, "train has no images of bee, a class of te"),
    ],
)
def test_labels_that_cannot_be_trained_with(tmp_path, splits, what):
    path = save(tmp_path, **{name: kinds(*labels) for name, labels in splits.items()})
    with pytest.raises(RunError, match=what):
        load("folder", path, image_size=8)


def test_columns_that_cannot_be_told_apart(tmp_path):
    two = kinds(0, 1, sort=[0, 0])
    path = save(tmp_path / "two", train=two, test=two)
    with pytest.raises(RunError, match=r"ClassLabel, .* it has kind, sort"):
        load("folder", path)
    bare = kinds(0, 1).remove_columns("kind")
    path = save(tmp_path / "bare", train=kinds(0, 1), test=bare)
    with pytest.raises(RunError, match="column kind of test differs"):
        load("folder", path)


def test_data_sets_that_cannot_be_opened(tmp_path):
    damaged = save(tmp_path / "saved", train=kinds(0))
    (damaged / "train" / "state.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for path in (damaged, tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(RunError, match=r"cannot be read .*--data-dir mu") as error:
            load("folder", path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


# --- CIFAR ---


def cifar(classes, images):
    """The columns of CIFAR-10 or CIFAR-100 on the hub."""
    label = datasets.ClassLabel(num_classes=classes)
    names = ("label",) if classes == 10 else ("fine_label", "coarse_label")
    columns = {name: [classes - 1, 3, 0] for name in names}
    return table(list(images), dict.fromkeys(names, label), **columns)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_cifar(tmp_path, monkeypatch, classes, where):
    images = noise(3, 32, 32, 3)
    rows = cifar(classes, images)
    place = tmp_path
    if where == "folder":
        for split in ("train", "test"):
            rows.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    else:
        hub = {f"uoft-cs/cifar{classes}": {"train": rows, "test": rows}}
        monkeypatch.setattr(datasets, "load_dataset", hub.__getitem__)
        place = None
    dataset = load(f"cifar{classes}", place)
    assert (dataset.image_shape, dataset.classes) == ((32, 32, 3), classes)
    for source in (dataset.train, dataset.test):
        np.testing.assert_array_equal(everything(source), images)
        np.testing.assert_array_equal(source.labels, [classes - 1, 3, 0])


def test_data_set_that_is_not_cifar(tmp_path):
    write_images(tmp_path)
    with pytest.raises(RunError, match="is not cifar100: it has 2 classes"):
        load("cifar100", tmp_path)


def test_no_network(monkeypatch):
    def load_dataset(name):
        raise ConnectionError(f"Couldn't reach '{name}'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RunError, match=r"cifar10 cannot be read .*--data-dir") as error:
        load("cifar10", None)
    assert "\n" not in str(error.value)


# --- What is asked for ---


@pytest.mark.parametrize(
    ("name", "data_dir", "size", "what"),
    [
        ("digits", Path(), None, "--data-dir is not for digits"),
        ("digits", None, 32, "--image-size is for folder, got 32 for digits"),
        ("folder", None, None, "folder needs --data-dir"),
    ],
)
def test_what_is_asked_for_makes_no_sense(name, data_dir, size, what):
    with pytest.raises(RunError, match=what):
        load(name, data_dir, size)


def test_usual_augmentation(tmp_path):
    digits = load("digits", None).train
    write_fashion(tmp_path)
    fashion = load("fashion-mnist", tmp_path).train
    assert (digits.margin, digits.flip) == (1, False)
    assert (fashion.margin, fashion.flip) == (2, True)
