"""Batches in a random order that can be entered at any step, in several processes."""

import dataclasses
import os
from collections.abc import Iterator

import grain
import numpy as np

from examples.common.runs import RunError
from examples.image_classification.data.sources import DRAWS, Dataset

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Loader:
    """The batches of a data set, read ahead by threads.

    A training batch is a function of the seed and the step alone, so a resumed run
    gets the batches that it would have had.
    """

    dataset: Dataset
    batch_size: int
    """Images of a batch, over all processes."""
    seed: int
    augment: bool = False
    mixup: float = 0.0
    """Alpha of the Beta distribution of mixing weights; 0 for no mixup."""
    process_index: int = 0
    process_count: int = 1
    """Each process reads its own rows of a batch."""

    def __post_init__(self) -> None:
        number = len(self.dataset.train.labels)
        if self.batch_size > number:
            raise RunError(
                "--batch-size must be at most the number of training images, "
                f"{number}, got {self.batch_size}."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Images that do not fill a batch are left out of an epoch of training."""
        return len(self.dataset.train.labels) // self.batch_size

    def training(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Batches of the steps from `first_step` up to before `last_step`.

        "image" is uint8 [local, h, w, c], "label" int32 [local]. With mixup there is
        "mix_weight", float32 [local].
        """
        # Not the seed itself: grain adds the epoch to it, so that the first epoch of
        # seed 1 would be the second one of seed 0.
        order_seed, augment_seed = np.random.SeedSequence(self.seed).generate_state(2)
        steps = (
            grain.MapDataset.range(len(self.dataset.train.labels))
            .shuffle(seed=int(order_seed))
            .batch(self.batch_size, drop_remainder=True)
            .repeat()
            .random_map(self._training_batch, seed=int(augment_seed))
        )
        return _read_ahead(steps[first_step:last_step])

    def testing(self) -> Iterator[Batch]:
        """All test images once, in order and not augmented.

        The last batch is padded with copies of the last image. "weight", float32
        [local], is 0 for the copies and 1 for all other images.
        """
        number = len(self.dataset.test.labels)
        steps = grain.MapDataset.range(-(-number // self.batch_size))
        return _read_ahead(steps.map(self._test_batch))

    @property
    def _rows(self) -> slice:
        local = self.batch_size // self.process_count
        return slice(self.process_index * local, (self.process_index + 1) * local)

    def _training_batch(self, indices: np.ndarray, rng: np.random.Generator) -> Batch:
        source, mine = self.dataset.train, indices[self._rows]
        # Drawn for the whole batch, so that it does not depend on the processes.
        draws = rng.random((len(indices), DRAWS))[self._rows]
        images = source.augmented(mine, draws) if self.augment else source.read(mine)
        batch = {"image": images, "label": source.labels[mine]}
        if self.mixup:
            weight = rng.beta(self.mixup, self.mixup, len(indices))[self._rows]
            batch["mix_weight"] = weight.astype(np.float32)
        return batch

    def _test_batch(self, step: int) -> Batch:
        source = self.dataset.test
        indices = (step * self.batch_size + np.arange(self.batch_size))[self._rows]
        last = len(source.labels) - 1
        mine = np.minimum(indices, last)
        batch = {"image": source.read(mine), "label": source.labels[mine]}
        return {**batch, "weight": (indices <= last).astype(np.float32)}


def _read_ahead(batches: grain.MapDataset) -> Iterator[Batch]:
    # One batch per thread: grain's default, 500 elements, is meant for single images.
    threads = min(16, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(batches.to_iter_dataset(options))
