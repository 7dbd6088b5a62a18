"""The mesh of devices, over one process or several, and how arrays are sharded."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from examples.common.runs import RunError
from examples.image_classification.config import Config

AXES = ("data", "fsdp")
SMALLEST = 2**10
"""Leaves with fewer elements are kept whole on every device."""


def connect(config: Config) -> None:
    """Makes this process one of several, if the options say so."""
    address, number, process = config.coordinator, config.processes, config.process
    if address is None and number is None and process is None:
        return
    # The backend of CPU collectives; GPUs and TPUs have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        address = None if address == "auto" else address
        jax.distributed.initialize(address, number, process)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            "--coordinator must be host:port of the first process, with --processes "
            f"and --process, or auto, got {config.coordinator}: {error}"
        ) from None


def parse(text: str, devices: int) -> dict[str, int]:
    """The lengths of the axes, from data=N,fsdp=M; all devices are data for ""."""
    if not text:
        return {"data": devices, "fsdp": 1}
    parts = [
        re.fullmatch(r"\s*(data|fsdp)=([1-9][0-9]*)\s*", part)
        for part in text.split(",")
    ]
    given = {part[1]: int(part[2]) for part in parts if part}
    if len(given) < len(parts):
        raise RunError(f"--mesh must be like data=4,fsdp=2, got {text}.")
    needed = math.prod(given.values())
    if needed != devices:
        raise RunError(f"--mesh {text} needs {needed} devices, there are {devices}.")
    return {name: given.get(name, 1) for name in AXES}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How arrays are placed on a mesh."""

    mesh: Mesh

    @classmethod
    def of(cls, config: Config) -> "Layout":
        """The mesh that the options name, over all devices of all processes."""
        sizes = parse(config.mesh, jax.device_count())
        parts = jax.device_count() * config.accumulate
        if config.batch_size % parts:
            raise RunError(
                f"--batch-size must be a multiple of {parts}, the number of devices "
                f"times --accumulate, got {config.batch_size}."
            )
        axis_types = (AxisType.Auto,) * len(AXES)
        return cls(jax.make_mesh(tuple(sizes.values()), AXES, axis_types=axis_types))

    @property
    def whole(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, P())

    def placed(self, shapes: Any) -> Any:
        """A state with shardings: fsdp divides leaves along their longest axis."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._of_leaf(x)),
            shapes,
        )

    def _of_leaf(self, leaf: Any) -> NamedSharding:
        parts = self.mesh.shape["fsdp"]
        divisible = [a for a, n in enumerate(leaf.shape) if n % parts == 0]
        if parts == 1 or math.prod(leaf.shape) < SMALLEST or not divisible:
            return self.whole
        axis = max(divisible, key=lambda a: leaf.shape[a])
        return NamedSharding(self.mesh, P(*[None] * axis, "fsdp"))

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch divided among all devices; each process has its own rows."""
        images = NamedSharding(self.mesh, P(AXES))
        return {
            name: jax.make_array_from_process_local_data(images, rows)
            for name, rows in batch.items()
        }
