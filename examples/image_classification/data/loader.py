"""Batches in a random order that can be entered at any step, in several processes."""

import os
from collections.abc import Iterator

import grain
import numpy as np

from examples.common.runs import RunError
from examples.image_classification.data.sources import DRAWS, Dataset

Batch = dict[str, np.ndarray]


class Loader:
    """The batches of a data set, read ahead by threads.

    A training batch is a function of the seed and of its step alone, so a resumed run
    sees what it would have seen. Of `process_count` processes, each reads its own rows
    of the batches, whose `batch_size` is that of all rows.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        augment: bool = False,
        mixup: float = 0.0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        number = len(dataset.train.labels)
        if batch_size % process_count:
            raise RunError(
                "--batch-size must be a multiple of the number of processes, "
                f"{process_count}, got {batch_size}."
            )
        if batch_size > number:
            raise RunError(
                "--batch-size must be at most the number of training images, "
                f"{number}, got {batch_size}."
            )
        self._dataset, self._batch_size = dataset, batch_size
        self._seed, self._augment, self._mixup = seed, augment, mixup
        local = batch_size // process_count
        self._rows = slice(process_index * local, (process_index + 1) * local)
        self.steps_per_epoch = number // batch_size
        """What does not fill a batch is left out of an epoch of training."""

    def training(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Batches of the steps from `first_step` up to before `last_step`.

        "image" is uint8 [local, h, w, c], "label" int32 [local]. With mixup, the alpha
        of a Beta distribution, there is "mix_weight", float32 [local].
        """
        # Not the seed itself: grain counts it up with the epoch, so that the epochs of
        # seed 1 would be those of seed 0, one later.
        order_seed, augment_seed = np.random.SeedSequence(self._seed).generate_state(2)
        steps = (
            grain.MapDataset.range(len(self._dataset.train.labels))
            .shuffle(seed=int(order_seed))
            .batch(self._batch_size, drop_remainder=True)
            .repeat()
            .random_map(self._training_batch, seed=int(augment_seed))
        )
        return _read_ahead(steps[first_step:last_step])

    def testing(self) -> Iterator[Batch]:
        """All test images once, in their order, as they are.

        The last batch is filled up with copies of the last image. "weight", float32
        [local], is 0 for these and 1 for all others.
        """
        number = len(self._dataset.test.labels)
        steps = grain.MapDataset.range(-(-number // self._batch_size))
        return _read_ahead(steps.map(self._test_batch))

    def _training_batch(self, indices: np.ndarray, rng: np.random.Generator) -> Batch:
        source, mine = self._dataset.train, indices[self._rows]
        # Drawn for the whole batch: an image is the same whoever reads it.
        draws = rng.random((len(indices), DRAWS))[self._rows]
        images = source.augmented(mine, draws) if self._augment else source.read(mine)
        batch = {"image": images, "label": source.labels[mine]}
        if self._mixup:
            weight = rng.beta(self._mixup, self._mixup, len(indices))[self._rows]
            batch["mix_weight"] = weight.astype(np.float32)
        return batch

    def _test_batch(self, step: int) -> Batch:
        source = self._dataset.test
        indices = (step * self._batch_size + np.arange(self._batch_size))[self._rows]
        last = len(source.labels) - 1
        mine = np.minimum(indices, last)
        weight = (indices <= last).astype(np.float32)
        return {
            "image": source.read(mine),
            "label": source.labels[mine],
            "weight": weight,
        }


def _read_ahead(batches: grain.MapDataset) -> Iterator[Batch]:
    # As many as can be read at once: grain's own buffer, 500, is meant for images.
    threads = min(16, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(batches.to_iter_dataset(options))
