"""TensorBoard event files of a run."""

from collections.abc import Mapping
from pathlib import Path

import jax
from tensorboardX import SummaryWriter


class Events:
    """Scalars over steps, in `events/` of a run's folder. A context manager.

    What an interrupted run wrote beyond its last checkpoint is hidden from `first` on.
    Of several processes the first writes.
    """

    def __init__(self, path: Path, first: int):
        writes = jax.process_index() == 0
        self._writer = SummaryWriter(
            str(path / "events"), purge_step=first, write_to_disk=writes
        )

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
