"""Batches in a random order that can be entered at any step, in several processes."""

import os
from collections.abc import Iterator

import grain
import numpy as np

from examples.common.runs import RunError
from examples.image_classification.data import augment as augmentation
from examples.image_classification.data.augment import Augment, Draws
from examples.image_classification.data.dataset import Source
from examples.image_classification.data.decode import EncodedSource

Batch = dict[str, np.ndarray]


class Loader:
    """The batches of a source, read ahead by threads.

    A training batch is a function of the seed and of its step alone, so a resumed run
    sees what it would have seen, and every process takes its rows of the one batch.
    Only these are read, and with mixup their partners.

    Args:
        source: Images and labels.
        batch_size: Images of a batch, over all processes.
        seed: Of the order and of the augmentation.
        train: Whether to shuffle and augment.
        augment: What is done to training images.
        process_index: Which process this is.
        process_count: How many share a batch, in equal parts.
        num_threads: Batches that are read at once; 0 reads each when it is asked for.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int,
        train: bool,
        augment: Augment,
        process_index: int = 0,
        process_count: int = 1,
        num_threads: int | None = None,
    ):
        if batch_size < 1 or batch_size % process_count:
            raise RunError(
                f"--batch-size must be a multiple of the number of processes, "
                f"{process_count}, got {batch_size}."
            )
        if train and batch_size > len(source):
            raise RunError(
                f"--batch-size must be at most the number of training images, "
                f"{len(source)}, got {batch_size}."
            )
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._train = train
        self._augment = augment
        local = batch_size // process_count
        self._rows = np.arange(process_index * local, (process_index + 1) * local)
        if num_threads is None:
            num_threads = min(16, os.cpu_count() or 1)
        self._read_options = grain.ReadOptions(
            num_threads=num_threads, prefetch_buffer_size=num_threads
        )

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; when training, what does not fill one is left out."""
        whole, rest = divmod(len(self._source), self._batch_size)
        return whole if self._train or not rest else whole + 1

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Training batches of the steps from `first_step` up to before `last_step`.

        "image" is uint8 [local, h, w, c], "label" int32 [local]. With mixup there are
        "mix_image" and "mix_label" of the partners, and "mix_weight", float32 [local]:
        the share of the partner, from 0 to 1.
        """
        if not self._train:
            raise ValueError("batches need a loader with train=True")
        # Not the seed itself: Grain counts it up with the epoch, so that the epochs of
        # seed 1 would be those of seed 0, one later.
        order_seed, augment_seed = np.random.SeedSequence(self._seed).generate_state(2)
        steps = (
            grain.MapDataset.range(len(self._source))
            .shuffle(seed=int(order_seed))
            .batch(self._batch_size, drop_remainder=True)
            .repeat()
            .random_map(self._training_batch, seed=int(augment_seed))
        )
        return self._iterate(steps[first_step:last_step])

    def epoch(self) -> Iterator[Batch]:
        """All examples once, in their order, as they are.

        The last batch is filled up with black images. "weight", float32 [local], is
        0 for these and 1 for all others.
        """
        if self._train:
            raise ValueError("an epoch needs a loader with train=False")
        steps = grain.MapDataset.range(self.steps_per_epoch)
        return self._iterate(steps.map(self._test_batch))

    def _iterate(self, steps: grain.MapDataset) -> Iterator[Batch]:
        return iter(steps.to_iter_dataset(self._read_options))

    def _training_batch(self, indices: np.ndarray, rng: np.random.Generator) -> Batch:
        draws = augmentation.draw(self._augment, len(indices), rng)
        partners = draws.partners[self._rows]
        # Each image is read once, though it may be the partner of another.
        both = np.stack([self._rows, partners])
        rows, (own, partner) = np.unique(both, return_inverse=True)
        images = self._read(indices[rows], rows, draws)
        images = augmentation.apply(images, self._augment, draws, rows)
        labels = self._source.labels[indices[rows]]
        batch = {"image": images[own], "label": labels[own]}
        if self._augment.mixup:
            batch["mix_image"] = images[partner]
            batch["mix_label"] = labels[partner]
            batch["mix_weight"] = draws.weights[self._rows]
        return batch

    def _read(self, indices: np.ndarray, rows: np.ndarray, draws: Draws) -> np.ndarray:
        if not draws.regions:
            return self._source.images(indices)
        if not isinstance(self._source, EncodedSource):
            raise ValueError("least_area is for images that lie encoded.")
        return self._source.cut(indices, [draws.regions[row] for row in rows])

    def _test_batch(self, step: int) -> Batch:
        indices = step * self._batch_size + self._rows
        real = indices < len(self._source)
        images = self._source.images(indices[real])
        missing = len(indices) - len(images)
        return {
            "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(self._source.labels[indices[real]], (0, missing)),
            "weight": real.astype(np.float32),
        }
