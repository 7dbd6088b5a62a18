"""Images: each format is read as it was written, and damage is named."""

import gzip
import io
import pickle
import struct
import sys
import tarfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from examples.common.runs import RunError
from examples.image_classification.data import (
    Augment,
    Loader,
    cifar,
    default_augment,
    fashion_mnist,
    load,
)
from examples.image_classification.data.decode import Region

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(256, size=shape, dtype=np.uint8)


def everything(source):
    return source.images(np.arange(len(source)))


# Digits.


def test_digits():
    digits = load("digits", None)
    assert (len(digits.train), len(digits.test)) == (1437, 360)
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


# Fashion-MNIST.


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
def test_fashion_mnist(tmp_path, suffix):
    arrays = write_fashion(tmp_path, suffix)
    dataset = load("fashion-mnist", tmp_path)
    for part, source in (("train", dataset.train), ("t10k", dataset.test)):
        images = arrays[f"{part}_images"][..., None]
        np.testing.assert_array_equal(everything(source), images)
        np.testing.assert_array_equal(source.labels, arrays[f"{part}_labels"])
        assert source.labels.dtype == np.int32
    assert dataset.image_shape == (28, 28, 1)
    assert len(dataset.class_names) == 10


def test_fashion_mnist_where_debian_has_it(tmp_path, monkeypatch):
    write_fashion(tmp_path, ".gz")
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path)
    assert len(load("fashion-mnist", None).train) == 12


IMAGES = np.zeros((12, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("train_images", idx(IMAGES, 2049), "magic number 2051, found 2049"),
        ("train_images", idx(IMAGES)[:-1], "12x28x28 bytes, found 9407"),
        ("train_images", idx(IMAGES)[:10], "header of 16 bytes, found 10"),
        ("train_images", idx(IMAGES[:, 1:]), "images of 28x28, found 27x28"),
        ("t10k_labels", idx(IMAGES[0, 0, :4]), "5 labels, one for each image, found 4"),
        ("t10k_labels", idx(IMAGES[0, 0, :5] + 10), "from 0 to 9, got 10 to 10"),
    ],
)
def test_damaged_idx(tmp_path, name, content, what):
    write_fashion(tmp_path, **{name: content})
    kind = name.replace("_", "-")
    with pytest.raises(RunError, match=f"{kind}-idx.-ubyte.*{what}"):
        load("fashion-mnist", tmp_path)


def test_damaged_gzip(tmp_path):
    write_fashion(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[:-100], b"no gzip", whole[:40] + b"\xff" * 40 + whole[80:]):
        path.write_bytes(content)
        with pytest.raises(
            RunError, match=r"ubyte.gz is damaged: cannot be read.*http"
        ):
            load("fashion-mnist", tmp_path)


def test_missing_idx(tmp_path):
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(RunError, match=r"no t10k-labels-idx1-ubyte or .*http"):
        load("fashion-mnist", tmp_path)


# CIFAR.


def pickled_by_python_2(labels, images, key):
    """A batch as the archives have it, where Python 2 wrote bytes as strings."""

    def string(value):
        return b"T" + struct.pack("<i", len(value)) + value

    def integer(value):
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + string(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + string(b"|") + b"NNN"
    dtype += integer(-1) + integer(-1) + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n("
    array += integer(0) + b"t" + string(b"b") + b"tR(" + integer(1)
    array += b"(" + b"".join(integer(size) for size in images.shape) + b"t"
    array += dtype + b"\x89" + string(images.tobytes()) + b"tb"
    numbers = b"(" + b"".join(integer(int(label)) for label in labels) + b"l"
    items = string(key) + numbers + string(b"data") + array
    return b"\x80\x02(" + items + b"d."


def cifar_files(archive, **changed):
    """The content of each file, and the images and labels of train and test."""
    parts = {}
    files = {}
    for name in (*archive.train, archive.test):
        labels = RNG.integers(archive.num_classes, size=3)
        images = noise(3, 3072)
        parts[name] = images, labels
        files[name] = pickled_by_python_2(labels, images, archive.labels)
    names = [f"class {n}".encode() for n in range(archive.num_classes)]
    # By protocol 2, that of the archives, Python 3 would write bytes as a call.
    files[archive.meta] = pickle.dumps({archive.class_names: names}, protocol=4)
    files |= changed
    train = [
        np.concatenate(x) for x in zip(*map(parts.get, archive.train), strict=True)
    ]
    return files, train, parts[archive.test]


def write_folder(place, files):
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)


def write_tar(path, folder, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    "archive", [cifar.CIFAR10, cifar.CIFAR100], ids=lambda x: x.name
)
@pytest.mark.parametrize("form", ["folder", "tar"])
def test_cifar(tmp_path, archive, form):
    files, train, test = cifar_files(archive)
    if form == "folder":
        place = tmp_path / archive.folder
        write_folder(place, files)
    else:
        place = tmp_path / archive.file
        write_tar(place, archive.folder, files)
    for data_dir in (tmp_path, place):
        dataset = load(archive.name, data_dir)
        for source, (values, labels) in ((dataset.train, train), (dataset.test, test)):
            np.testing.assert_array_equal(source.labels, labels)
            # The archives have one colour after the other.
            images = everything(source).transpose(0, 3, 1, 2)
            np.testing.assert_array_equal(images.reshape(-1, 3072), values)
        assert dataset.class_names[3] == "class 3"
        assert len(dataset.class_names) == archive.num_classes


def batch_of(**changed):
    batch = {b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1, 2]}
    batch |= {name.encode(): value for name, value in changed.items()}
    return pickle.dumps(batch, protocol=4)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("data_batch_2", batch_of(data=np.zeros((3, 99), np.uint8)), r"\(3, 99\)"),
        ("data_batch_2", batch_of(data=np.zeros((3, 3072))), "array of bytes"),
        ("data_batch_2", batch_of(data=None), "array of bytes"),
        ("data_batch_2", batch_of(labels=[0, 1]), "3 labels, one for each .*found 2"),
        ("data_batch_2", batch_of(labels=[0, 1, 10]), "from 0 to 9, got 0 to 10"),
        ("data_batch_2", batch_of(labels=[0, 1, -1]), "from 0 to 9, got -1 to 1"),
        ("data_batch_2", batch_of(labels=[0, 1.5, 2]), "integers"),
        ("data_batch_2", batch_of(labels=[[0], [1, 2]]), "list of labels"),
        ("data_batch_2", batch_of(labels=None), "list of labels"),
        ("data_batch_2", batch_of()[:2000], "cannot be read"),
        ("data_batch_2", pickle.dumps([1, 2]), "a dictionary"),
        ("batches.meta", pickle.dumps({b"label_names": []}), "10 names of classes"),
    ],
)
def test_damaged_cifar(tmp_path, name, content, what):
    files, *_ = cifar_files(cifar.CIFAR10, **{name: content})
    write_folder(tmp_path / cifar.CIFAR10.folder, files)
    with pytest.raises(RunError, match=rf"{name}.*{what}"):
        load("cifar10", tmp_path)


class Malice:
    def __reduce__(self):
        return print, ("run",)


def test_pickles_run_no_code(tmp_path, capsys):
    files, *_ = cifar_files(cifar.CIFAR100, meta=pickle.dumps(Malice()))
    write_folder(tmp_path / cifar.CIFAR100.folder, files)
    with pytest.raises(RunError, match=r"meta is damaged: .*print is not admitted"):
        load("cifar100", tmp_path)
    assert not capsys.readouterr().out


def test_damaged_or_incomplete_cifar_archive(tmp_path):
    files, *_ = cifar_files(cifar.CIFAR10)
    path = tmp_path / cifar.CIFAR10.file
    del files["data_batch_4"]
    write_tar(path, cifar.CIFAR10.folder, files)
    with pytest.raises(RunError, match=r"tar.gz is damaged: expected data_batch_4"):
        load("cifar10", path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive"):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"tar.gz is damaged: cannot be read.*http"):
            load("cifar10", tmp_path)


# Images in folders.


def picture(size=(40, 24), colour=(200, 100, 50)):
    return Image.new("RGB", size, colour)


def write_images(root, test="val"):
    for part in ("train", test):
        for name, value in (("ant", 40), ("bee", 210)):
            (root / part / name).mkdir(parents=True)
            colour = (value, 90, 255 - value)
            picture(colour=colour).save(root / part / name / "a.JPEG")
            picture((24, 40), colour).save(root / part / name / "b.png")
    # Neither of these is an image.
    (root / "train" / "ant" / "notes.txt").write_text("ants")
    (root / "train" / "ant" / "._a.JPEG").write_bytes(b"")


@pytest.mark.parametrize("test", ["val", "test"])
def test_folder(tmp_path, test):
    write_images(tmp_path, test)
    dataset = load("folder", tmp_path, image_size=16)
    assert dataset.class_names == ("ant", "bee")
    assert dataset.image_shape == (16, 16, 3)
    for source in (dataset.train, dataset.test):
        np.testing.assert_array_equal(source.labels, [0, 0, 1, 1])
        images = everything(source)
        assert images.shape == (4, 16, 16, 3)
        assert images.dtype == np.uint8
        red = np.full((16, 16), 40.0)
        np.testing.assert_allclose(images[0, :, :, 0], red, atol=3)  # JPEG is not exact
        np.testing.assert_array_equal(images[1, :, :, 0], red)
    assert load("folder", tmp_path).image_shape == (224, 224, 3)


def test_shorter_side_is_resized_and_the_middle_cut_out(tmp_path):
    write_images(tmp_path)
    stripes = picture((48, 16), (255, 0, 0))
    stripes.paste((0, 255, 0), (16, 0, 32, 16))
    stripes.save(tmp_path / "train" / "ant" / "a.png")
    source = load("folder", tmp_path, image_size=16).train
    middle = np.full((16, 16, 3), (0, 255, 0))
    np.testing.assert_array_equal(source.images(np.array([1]))[0], middle)
    source = load("folder", tmp_path, image_size=8).train
    np.testing.assert_array_equal(
        source.images(np.array([1]))[0, :, 1:-1], middle[:8, :6]
    )


@hypothesis.given(
    area=st.floats(0.05, 1),
    ratio=st.floats(0.5, 2),
    left=st.floats(0, 1),
    top=st.floats(0, 1),
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
)
def test_region_lies_in_the_image(area, ratio, left, top, size):
    x0, y0, x1, y1 = Region(area, ratio, left, top).box(*size)
    assert 0 <= x0 < x1 <= size[0] * (1 + 1e-9)
    assert 0 <= y0 < y1 <= size[1] * (1 + 1e-9)
    if x1 - x0 < size[0] and y1 - y0 < size[1]:
        np.testing.assert_allclose((x1 - x0) * (y1 - y0), area * size[0] * size[1])
        np.testing.assert_allclose((x1 - x0) / (y1 - y0), ratio)
    # From one border to the other.
    np.testing.assert_allclose(x0, left * (size[0] - (x1 - x0)), atol=1e-9)
    np.testing.assert_allclose(y0, top * (size[1] - (y1 - y0)), atol=1e-9)


def test_region_is_cut_out_and_resized(tmp_path):
    write_images(tmp_path)
    # Each pixel has the column in red and the row in green.
    columns, rows = np.meshgrid(np.arange(80), np.arange(60))
    places = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)
    Image.fromarray(places).save(tmp_path / "train" / "ant" / "a.png")
    source = load("folder", tmp_path, image_size=16).train
    region = Region(area=0.25, ratio=1.2, left=0.3, top=0.7)
    (image,) = source.cut(np.array([1]), [region])
    x0, y0, x1, y1 = region.box(80, 60)
    centres = (np.arange(16) + 0.5) / 16
    columns, rows = np.meshgrid(
        x0 + (x1 - x0) * centres - 0.5, y0 + (y1 - y0) * centres - 0.5
    )
    expected = np.stack([columns, rows, 0 * rows], -1)[1:-1, 1:-1]
    np.testing.assert_allclose(image[1:-1, 1:-1], expected, atol=1)


def test_small_region_of_a_large_jpeg_is_not_decoded_too_small(tmp_path):
    write_images(tmp_path)
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::8] = stripes[:, 1::8] = stripes[:, 2::8] = stripes[:, 3::8] = 255
    path = tmp_path / "train" / "ant" / "a.JPEG"
    Image.fromarray(stripes).save(path, quality=95)
    source = load("folder", tmp_path, image_size=16).train
    (whole,) = source.images(np.array([0]))
    (part,) = source.cut(np.array([0]), [Region(1 / 64, 1.0, 0.5, 0.5)])
    assert whole.std() < 5
    assert part.std() > 50


def test_images_of_other_colours(tmp_path):
    write_images(tmp_path)
    for mode in ("L", "RGBA", "P", "1"):
        picture().convert(mode).save(tmp_path / "train" / "ant" / "b.png")
        assert load("folder", tmp_path, image_size=8).train.images(
            np.array([1])
        ).shape == (1, 8, 8, 3)


def test_damaged_image_is_named_when_it_is_read(tmp_path):
    write_images(tmp_path)
    for name, position in (("a.JPEG", 2), ("b.png", 3)):
        path = tmp_path / "train" / "bee" / name
        whole = path.read_bytes()
        for content in (b"", b"no image", whole[: len(whole) // 2]):
            path.write_bytes(content)
            dataset = load("folder", tmp_path, image_size=16)
            with pytest.raises(RunError, match=rf"bee/{name} cannot be read as an im"):
                dataset.train.images(np.array([position]))
    # In a thread of a loader too.
    loader = Loader(dataset.train, 4, seed=0, train=True, augment=Augment())
    with pytest.raises(RunError, match="bee/"):
        list(loader.batches(0, 1))


def test_folder_that_is_none(tmp_path):
    with pytest.raises(RunError, match=r"must have folders train and val \(or test\)"):
        load("folder", tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "ant").mkdir(parents=True)
    with pytest.raises(RunError, match=r"train has no images: expected .*<class>"):
        load("folder", tmp_path)
    (tmp_path / "val" / "cat").mkdir()
    with pytest.raises(RunError, match=r"val/cat: .*train has no class of this name"):
        load("folder", tmp_path)


# Hugging Face.


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("datasets")


def table(hub, number, labels=None, **more):
    features = {
        "picture": hub.Image(),
        "kind": hub.ClassLabel(names=["ant", "bee"]),
    } | {name: hub.ClassLabel(names=["x"]) for name in more}
    columns = {
        "picture": [picture(colour=(9 * n, 0, 0)) for n in range(number)],
        "kind": [n % 2 for n in range(number)] if labels is None else labels,
    }
    return hub.Dataset.from_dict(columns | more, features=hub.Features(features))


def save(hub, path, **splits):
    hub.DatasetDict(splits).save_to_disk(str(path))
    return path


def test_hugging_face(tmp_path, hub):
    hidden = table(hub, 2, labels=[-1, -1])
    path = save(
        hub, tmp_path, train=table(hub, 5), validation=table(hub, 3), test=hidden
    )
    dataset = load("folder", path, image_size=16)
    assert dataset.class_names == ("ant", "bee")
    assert dataset.image_shape == (16, 16, 3)
    np.testing.assert_array_equal(dataset.train.labels, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 0])
    images = dataset.train.images(np.array([3, 1]))
    assert images.dtype == np.uint8
    assert images.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(images[:, 5, 5], [(27, 0, 0), (9, 0, 0)])
    # The last batch of this process is all padding.
    loader = Loader(
        dataset.test,
        4,
        seed=0,
        train=False,
        augment=Augment(),
        process_index=3,
        process_count=4,
    )
    (batch,) = loader.epoch()
    assert batch["image"].shape == (1, 16, 16, 3)
    assert batch["weight"] == 0


def test_bad_hugging_face(tmp_path, hub):
    good = table(hub, 2)
    hidden = table(hub, 2, labels=[-1, -1])
    none = table(hub, 2, labels=[None, 1])
    two = table(hub, 2, sort=[0, 0])
    for number, (splits, what) in enumerate(
        [
            ({"train": good}, r"train and validation \(or test\), it has train"),
            ({"train": good, "test": hidden}, "from 0 to 1, got -1 to -1"),
            ({"train": none, "test": good}, "labels must be integers"),
            ({"train": two, "test": two}, "ClassLabel, .* it has kind, sort"),
            (
                {"train": good, "test": good.remove_columns("kind")},
                "column kind of test differs",
            ),
        ]
    ):
        path = save(hub, tmp_path / str(number), **splits)
        with pytest.raises(RunError, match=what):
            load("folder", path, image_size=8)
    (path / "train" / "state.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read as a Hugging Face data set"):
        load("folder", path)


def test_hugging_face_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "dataset_dict.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RunError, match="pip install datasets"):
        load("folder", tmp_path)


# What is asked for.


def test_what_is_asked_for_makes_no_sense(tmp_path):
    for name, data_dir, size, what in (
        ("mnist", None, None, "one of digits, fashion-mnist, .* got mnist"),
        ("digits", tmp_path, None, "not for digits"),
        ("digits", None, 32, "digits has images of 8x8"),
        ("cifar10", None, None, "needs --data-dir.*cifar-10-python.tar.gz.*http"),
        ("cifar100", tmp_path, None, "no cifar-100-python or .*http"),
        ("folder", None, None, "needs --data-dir"),
        ("folder", tmp_path / "none", None, "none does not exist"),
    ):
        with pytest.raises(RunError, match=what) as error:
            load(name, data_dir, image_size=size)
        assert "\n" not in str(error.value)


def test_default_augment():
    assert default_augment("digits") == Augment(crop=1)
    assert default_augment("fashion-mnist") == Augment(crop=2, flip=True)
    assert default_augment("cifar100") == Augment(crop=4, flip=True)
    assert default_augment("folder") == Augment(least_area=0.08, flip=True)
