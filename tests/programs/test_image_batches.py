"""Batches of images are exact, and the same wherever and whenever they are read."""

import numpy as np
import pytest
from PIL import Image

from examples.common.runs import RunError
from examples.image_classification.data import Augment, Loader, load, statistics
from examples.image_classification.data import augment as augmentation
from examples.image_classification.data.dataset import ArraySource

RNG = np.random.default_rng(0)
NOTHING = Augment()
ALL = Augment(crop=2, flip=True, mixup=0.4)


def noise(*shape):
    return RNG.integers(256, size=shape, dtype=np.uint8)


# Augmentation.


def test_crops_and_flips_are_of_the_image():
    images = noise(40, 6, 5, 3)
    augment = Augment(crop=1, flip=True)
    draws = augmentation.draw(augment, 40, np.random.default_rng(1))
    changed = augmentation.apply(images, augment, draws, np.arange(40))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for image, whole, (top, left), mirrored in zip(
        changed, padded, draws.offsets, draws.mirrored, strict=True
    ):
        cut = whole[top : top + 6, left : left + 5]
        np.testing.assert_array_equal(image, cut[:, ::-1] if mirrored else cut)
    # All nine crops, and both directions, occur.
    assert len(np.unique(draws.offsets, axis=0)) == 9
    assert 0 < draws.mirrored.sum() < 40


def test_no_augmentation():
    images = noise(4, 6, 5, 3)
    draws = augmentation.draw(Augment(), 4, np.random.default_rng(1))
    changed = augmentation.apply(images, Augment(), draws, np.arange(4))
    np.testing.assert_array_equal(changed, images)


# The loader.


def source(number=23, shape=(4, 4, 3)):
    """The label of an image is its index, which all its pixels are too."""
    labels = np.arange(number, dtype=np.int32)
    images = np.broadcast_to(
        labels.astype(np.uint8).reshape(-1, 1, 1, 1), (number, *shape)
    )
    return ArraySource(images, labels)


def loader(data, batch_size=4, *, seed=0, train=True, augment=NOTHING, **options):
    return Loader(data, batch_size, seed=seed, train=train, augment=augment, **options)


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for name, value in batch.items():
        assert value.dtype == other[name].dtype
        np.testing.assert_array_equal(value, other[name])


def labels_of(batches):
    return np.concatenate([batch["label"] for batch in batches]).tolist()


def test_epoch_of_training_has_each_image_once_and_the_next_another_order():
    train = loader(source(24))
    assert train.steps_per_epoch == 6
    batches = list(train.batches(0, 18))
    orders = [labels_of(batches[start : start + 6]) for start in (0, 6, 12)]
    for order in orders:
        assert sorted(order) == list(range(24))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    for batch in batches:
        assert batch.keys() == {"image", "label"}
        assert batch["label"].dtype == np.int32
        assert batch["image"].shape == (4, 4, 4, 3)
        assert (batch["image"] == batch["label"][:, None, None, None]).all()


def test_what_fills_no_batch_is_left_out_of_training():
    train = loader(source(23))
    assert train.steps_per_epoch == 5
    seen = labels_of(train.batches(5, 10))
    assert len(set(seen)) == 20


def test_seeds_share_no_epoch():
    orders = [labels_of(loader(source(), seed=n).batches(0, 20)) for n in range(4)]
    epochs = {tuple(order[at : at + 20]) for order in orders for at in (0, 20, 40, 60)}
    assert len(epochs) == 16


@pytest.mark.parametrize("num_threads", [0, 3])
def test_resuming_at_any_step_is_going_on(num_threads):
    data = ArraySource(noise(23, 6, 6, 1), np.arange(23, dtype=np.int32))
    whole = list(loader(data, augment=ALL, num_threads=0).batches(0, 13))
    for first in (0, 1, 4, 5, 12, 13):
        resumed = loader(data, augment=ALL, num_threads=num_threads)
        rest = list(resumed.batches(first, 13))
        assert len(rest) == 13 - first
        for batch, other in zip(rest, whole[first:], strict=True):
            assert_same(batch, other)


class Counted(ArraySource):
    read = 0

    def images(self, indices):
        self.read += len(indices)
        return super().images(indices)


@pytest.mark.parametrize("process_count", [2, 4, 8])
@pytest.mark.parametrize("augment", [Augment(crop=2, flip=True), ALL])
def test_processes_hold_the_rows_of_one_batch(process_count, augment):
    data = Counted(noise(23, 6, 6, 1), np.arange(23, dtype=np.int32))
    (whole,) = loader(data, 8, augment=augment).batches(3, 4)
    data.read = 0
    parts = []
    for index in range(process_count):
        part = loader(
            data, 8, augment=augment, process_index=index, process_count=process_count
        )
        parts += part.batches(3, 4)
    joined = {name: np.concatenate([x[name] for x in parts]) for name in whole}
    assert_same(joined, whole)
    # No process reads more than its rows, and their partners.
    assert 8 <= data.read <= (16 if augment.mixup else 8)


def test_mixup_partners_are_images_of_the_batch_as_it_is_without_mixup():
    data = ArraySource(noise(23, 6, 6, 1), np.arange(23, dtype=np.int32))
    plain = Augment(crop=2, flip=True)
    for with_mixup, without in zip(
        loader(data, augment=ALL).batches(0, 8),
        loader(data, augment=plain).batches(0, 8),
        strict=True,
    ):
        image = dict(zip(without["label"], without["image"], strict=True))
        np.testing.assert_array_equal(with_mixup["image"], without["image"])
        np.testing.assert_array_equal(with_mixup["label"], without["label"])
        assert sorted(with_mixup["mix_label"]) == sorted(without["label"])
        for label, partner in zip(
            with_mixup["mix_label"], with_mixup["mix_image"], strict=True
        ):
            np.testing.assert_array_equal(partner, image[label])
        weight = with_mixup["mix_weight"]
        assert weight.dtype == np.float32
        assert ((weight >= 0) & (weight <= 1)).all()


def test_mixing_weights_are_of_the_beta_distribution():
    weights = augmentation.draw(ALL, 20_000, np.random.default_rng(0)).weights
    # Of Beta(a, a): 1 / (4 (2 a + 1)); bounds of five standard errors.
    np.testing.assert_allclose(weights.mean(), 0.5, atol=0.014)
    np.testing.assert_allclose(weights.var(), 1 / (4 * 1.8), atol=0.006)


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_epoch_of_testing_has_all_images_in_order_and_is_filled_up(process_count):
    data = source(9)
    parts = [
        list(
            loader(
                data,
                train=False,
                augment=ALL,
                process_index=index,
                process_count=process_count,
            ).epoch()
        )
        for index in range(process_count)
    ]
    assert [len(part) for part in parts] == [3] * process_count
    assert loader(data, train=False).steps_per_epoch == 3
    for name, expected in (
        ("label", [*range(9), 0, 0, 0]),
        ("weight", [1] * 9 + [0] * 3),
    ):
        batches = zip(*parts, strict=True)
        joined = [x for batch in batches for part in batch for x in part[name]]
        assert joined == expected
    last = parts[-1][-1]
    assert last["weight"].dtype == np.float32
    assert last["label"].dtype == np.int32
    assert last["image"].shape == (4 // process_count, 4, 4, 3)
    assert last["image"].dtype == np.uint8
    assert not last["image"][last["weight"] == 0].any()


def test_batches_that_cannot_be():
    with pytest.raises(RunError, match=r"--batch-size must be a multiple .* 3, got 4"):
        loader(source(), process_count=3)
    with pytest.raises(RunError, match=r"--batch-size must be at most .* 23, got 24"):
        loader(source(), 24)
    with pytest.raises(RunError, match="got 0"):
        loader(source(), 0)
    assert loader(source(), 24, train=False).steps_per_epoch == 1
    with pytest.raises(ValueError, match="train=True"):
        loader(source(), train=False).batches(0, 1)
    with pytest.raises(ValueError, match="train=False"):
        loader(source()).epoch()


# Regions of encoded images.


def test_regions_of_a_batch_do_not_depend_on_who_reads_it(tmp_path):
    for part, name in (("train", "ant"), ("train", "bee"), ("val", "ant")):
        (tmp_path / part / name).mkdir(parents=True)
        for number in range(3):
            image = Image.fromarray(noise(40, 50, 3))
            image.save(tmp_path / part / name / f"{number}.png")
    data = load("folder", tmp_path, image_size=8).train
    augment = Augment(least_area=0.08, flip=True, mixup=0.3)
    whole = list(loader(data, augment=augment).batches(0, 8))
    (resumed,) = loader(data, augment=augment).batches(3, 4)
    assert_same(resumed, whole[3])
    parts = [
        next(
            loader(data, augment=augment, process_index=index, process_count=4).batches(
                3, 4
            )
        )
        for index in range(4)
    ]
    joined = {name: np.concatenate([x[name] for x in parts]) for name in resumed}
    assert_same(joined, resumed)
    # The same image is cut in another way each time.
    seen = np.concatenate([batch["image"] for batch in whole])
    assert len(np.unique(seen, axis=0)) == len(seen) == 32


def test_shares_and_ratios_of_regions():
    draws = augmentation.draw(
        Augment(least_area=0.2), 4000, np.random.default_rng(0)
    ).regions
    areas, ratios, left, top = np.transpose(draws)
    for values, low, high in (
        (areas, 0.2, 1),
        (np.log(ratios), np.log(3 / 4), np.log(4 / 3)),
        (left, 0, 1),
        (top, 0, 1),
    ):
        assert (values >= low).all()
        assert (values <= high).all()
        # Uniform: five standard errors of the mean.
        error = (high - low) / np.sqrt(12 * 4000)
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=5 * error)


def test_regions_are_of_encoded_images():
    with pytest.raises(ValueError, match="least_area is for images that lie encoded"):
        list(loader(source(), augment=Augment(least_area=0.5)).batches(0, 1))


# What images are normalised with.


def test_statistics_are_those_of_all_images_if_they_are_few():
    images = noise(300, 5, 4, 3)
    mean, std = statistics(ArraySource(images, np.zeros(300, np.int32)))
    assert mean.dtype == std.dtype == np.float32
    scaled = images / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-6)


def test_statistics_of_many_images_are_of_a_fixed_sample():
    images = noise(20_000, 2, 2, 1)
    data = Counted(images, np.zeros(20_000, np.int32))
    first = statistics(data)
    assert data.read == 10_000
    np.testing.assert_array_equal(first, statistics(data))
    # Five standard errors of a mean of 40,000 values.
    np.testing.assert_allclose(first[0], images.mean() / 255, atol=5 * 0.29 / 200)


def test_images_of_one_colour_can_be_divided_by_their_deviation():
    mean, std = statistics(
        ArraySource(np.full((3, 2, 2, 1), 51, np.uint8), np.zeros(3))
    )
    np.testing.assert_allclose(mean, [0.2], rtol=1e-6)
    np.testing.assert_allclose(std, [1 / 255], rtol=1e-6)
