"""Batches of images are exact, and the same wherever and whenever they are read."""

import numpy as np
import pytest

from examples.common.runs import RunError
from examples.image_classification.data import Dataset, Loader, statistics
from examples.image_classification.data.sources import DRAWS, Arrays

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(256, size=shape, dtype=np.uint8)


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for name, value in batch.items():
        assert value.dtype == other[name].dtype
        np.testing.assert_array_equal(value, other[name])


# --- Augmentation ---


def test_crops_and_flips_are_of_the_image():
    images = noise(400, 6, 5, 3)
    source = Arrays(images, np.zeros(400, np.int32), margin=1, flip=True)
    draws = np.random.default_rng(1).random((400, DRAWS))
    changed = source.augmented(np.arange(400), draws)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = []
    for image, whole in zip(changed, padded, strict=True):
        cuts = {
            (top, left, step): whole[top : top + 6, left : left + 5][:, ::step]
            for top in range(3)
            for left in range(3)
            for step in (1, -1)
        }
        (cut,) = (name for name, cut in cuts.items() if (cut == image).all())
        found.append(cut)
    # All crops in both directions occur, as often; bounds of five standard errors.
    _, counts = np.unique(found, axis=0, return_counts=True)
    np.testing.assert_allclose(counts, [400 / 18] * 18, atol=5 * (400 / 18) ** 0.5)


def test_no_margin_and_no_flip_change_nothing():
    source = Arrays(noise(4, 6, 5, 3), np.zeros(4, np.int32))
    changed = source.augmented(np.arange(4), RNG.random((4, DRAWS)))
    np.testing.assert_array_equal(changed, source.images)


# --- Training ---


def arrays(number, shape=(4, 4, 3), **options):
    """The label of an image is its index, which all its pixels are too."""
    labels = np.arange(number, dtype=np.int32)
    pixels = labels.astype(np.uint8).reshape(-1, 1, 1, 1)
    return Arrays(np.broadcast_to(pixels, (number, *shape)), labels, **options)


def loader(train=23, test=9, batch_size=4, *, seed=0, **options):
    dataset = Dataset(arrays(train), arrays(test), 23, (4, 4, 3))
    return Loader(dataset, batch_size, seed=seed, **options)


def augmented(batch_size=4, **options):
    """A loader of images that differ, and are changed at random."""
    train = Arrays(
        np.random.default_rng(2).integers(256, size=(23, 6, 6, 1), dtype=np.uint8),
        np.arange(23, dtype=np.int32),
        margin=2,
        flip=True,
    )
    dataset = Dataset(train, train, 23, (6, 6, 1))
    options = {"augment": True, "mixup": 0.4} | options
    return Loader(dataset, batch_size, seed=0, **options)


def labels_of(batches):
    return np.concatenate([batch["label"] for batch in batches]).tolist()


def test_epoch_of_training_has_each_image_once_and_the_next_another_order():
    train = loader(24)
    assert train.steps_per_epoch == 6
    batches = list(train.training(0, 18))
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
    train = loader(23)
    assert train.steps_per_epoch == 5
    assert len(set(labels_of(train.training(5, 10)))) == 20


def test_seeds_share_no_epoch():
    orders = [labels_of(loader(seed=seed).training(0, 20)) for seed in range(4)]
    epochs = {tuple(order[at : at + 20]) for order in orders for at in (0, 20, 40, 60)}
    assert len(epochs) == 16


def test_resuming_at_any_step_is_going_on():
    whole = list(augmented().training(0, 13))
    for first in (0, 1, 4, 5, 12, 13):
        rest = list(augmented().training(first, 13))
        assert len(rest) == 13 - first
        for batch, other in zip(rest, whole[first:], strict=True):
            assert_same(batch, other)


def test_an_image_is_changed_in_another_way_each_time():
    seen = [batch["image"] for batch in augmented().training(0, 20)]
    images = np.concatenate(seen)
    assert len(np.unique(images, axis=0)) > 0.9 * len(images)


def test_mixing_weights_are_of_the_beta_distribution_and_change_nothing_else():
    plain = loader(1000, batch_size=1000, augment=True).training(0, 4)
    mixed = loader(1000, batch_size=1000, augment=True, mixup=0.4).training(0, 4)
    weights = []
    for batch, other in zip(mixed, plain, strict=True):
        weights.append(batch.pop("mix_weight"))
        assert_same(batch, other)
    assert weights[0].dtype == np.float32
    assert np.min(weights) >= 0
    assert np.max(weights) <= 1
    # Of Beta(a, a): 1 / (4 (2 a + 1)); bounds of five standard errors.
    np.testing.assert_allclose(np.mean(weights), 0.5, atol=0.03)
    np.testing.assert_allclose(np.var(weights), 1 / (4 * 1.8), atol=0.0135)


@pytest.mark.parametrize("process_count", [2, 8])
def test_processes_hold_the_rows_of_one_batch(process_count):
    (whole,) = augmented(8).training(3, 4)
    parts = []
    for index in range(process_count):
        part = augmented(8, process_index=index, process_count=process_count)
        parts += part.training(3, 4)
    joined = {name: np.concatenate([x[name] for x in parts]) for name in whole}
    assert_same(joined, whole)


# --- Testing ---


@pytest.mark.parametrize("process_count", [1, 4])
def test_epoch_of_testing_has_all_images_in_order_and_is_filled_up(process_count):
    parts = [
        list(loader(process_index=index, process_count=process_count).testing())
        for index in range(process_count)
    ]
    assert [len(part) for part in parts] == [3] * process_count
    batches = [
        {name: np.concatenate([x[name] for x in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    labels, weights = (
        np.concatenate([batch[name] for batch in batches])
        for name in ("label", "weight")
    )
    assert weights.tolist() == [1] * 9 + [0] * 3
    assert labels[weights == 1].tolist() == list(range(9))
    assert (weights.dtype, labels.dtype) == (np.float32, np.int32)
    for batch in batches:
        assert batch["image"].shape == (4, 4, 4, 3)
        assert (batch["image"] == batch["label"][:, None, None, None]).all()


def test_batch_of_more_images_than_there_are():
    with pytest.raises(RunError, match=r"--batch-size must be at most .* 23, got 24"):
        loader(batch_size=24)


# --- What images are normalised with ---


def test_statistics_are_those_of_all_images_if_they_are_few():
    images = noise(300, 5, 4, 3)
    mean, std = statistics(Arrays(images, np.zeros(300, np.int32)))
    assert mean.dtype == std.dtype == np.float32
    scaled = images / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-6)


def test_statistics_of_many_images_are_of_a_fixed_sample(monkeypatch):
    images = noise(20_000, 2, 2, 1)
    read = []
    monkeypatch.setattr(
        Arrays, "read", lambda self, chunk: read.extend(chunk) or self.images[chunk]
    )
    source = Arrays(images, np.zeros(20_000, np.int32))
    first = statistics(source)
    assert len(set(read)) == len(read) == 10_000
    np.testing.assert_array_equal(first, statistics(source))
    # Five standard errors of a mean of 40,000 values.
    np.testing.assert_allclose(first[0], images.mean() / 255, atol=5 * 0.29 / 200)


def test_images_of_one_colour_can_be_divided_by_their_deviation():
    grey = Arrays(np.full((3, 2, 2, 1), 51, np.uint8), np.zeros(3, np.int32))
    mean, std = statistics(grey)
    np.testing.assert_allclose(mean, [0.2], rtol=1e-6)
    np.testing.assert_allclose(std, [1 / 255], rtol=1e-6)
