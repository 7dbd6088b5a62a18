"""Devices as a mesh: which axis shards what, and processes that share it."""

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
"""Leaves with fewer entries are kept whole on every device."""


def connect(config: Config) -> None:
    """Makes this process one of several, if the options say so."""
    if config.coordinator is None:
        for name in ("processes", "process"):
            if getattr(config, name) is not None:
                raise RunError(f"--{name} needs --coordinator.")
        return
    # How CPUs talk to each other. GPUs and TPUs have means of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if config.coordinator == "auto":
            jax.distributed.initialize()
        else:
            if config.processes is None or config.process is None:
                raise RunError(
                    f"--coordinator {config.coordinator} needs --processes and "
                    "--process; only auto finds them out."
                )
            jax.distributed.initialize(
                config.coordinator, config.processes, config.process
            )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"--coordinator must be host:port of the first process, or auto, got "
            f"{config.coordinator}: {error}"
        ) from None


def parse(text: str, devices: int) -> dict[str, int]:
    """The lengths of the axes, from data=N,fsdp=M; all devices are data for ""."""
    wanted = "--mesh must be like data=4,fsdp=2"
    if not text:
        return {"data": devices, "fsdp": 1}
    sizes = dict.fromkeys(AXES, 1)
    seen = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(data|fsdp)=([1-9][0-9]*)\s*", part)
        if not found or found[1] in seen:
            raise RunError(f"{wanted}, got {text}.")
        seen.add(found[1])
        sizes[found[1]] = int(found[2])
    needed = math.prod(sizes.values())
    if needed != devices:
        raise RunError(f"--mesh {text} needs {needed} devices, there are {devices}.")
    return sizes


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays are on a mesh."""

    mesh: Mesh

    @classmethod
    def of(cls, config: Config) -> "Layout":
        """The mesh that the options name, over all devices of all processes."""
        sizes = parse(config.mesh, jax.device_count())
        for what, parts in (
            ("devices", jax.device_count()),
            ("devices and parts", jax.device_count() * config.accumulate),
        ):
            if config.batch_size % parts:
                raise RunError(
                    f"--batch-size must be a multiple of {parts}, the number of "
                    f"{what}, got {config.batch_size}."
                )
        lengths = tuple(sizes[name] for name in AXES)
        return cls(jax.make_mesh(lengths, AXES, axis_types=(AxisType.Auto,) * 2))

    @property
    def whole(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, P())

    @property
    def batch(self) -> NamedSharding:
        """Images are divided among all devices."""
        return NamedSharding(self.mesh, P(AXES))

    def of_state(self, shapes: Any) -> Any:
        """Shardings of a state: leaves are divided along their longest axis by fsdp."""
        return jax.tree.map(self._of_leaf, shapes)

    def _of_leaf(self, leaf: Any) -> NamedSharding:
        parts = self.mesh.shape["fsdp"]
        divisible = [a for a, n in enumerate(leaf.shape) if n % parts == 0]
        if parts == 1 or math.prod(leaf.shape) < SMALLEST or not divisible:
            return self.whole
        axis = max(divisible, key=lambda a: leaf.shape[a])
        spec = [None] * axis + ["fsdp"]
        return NamedSharding(self.mesh, P(*spec))

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch on the devices, of whose rows each process has its own."""
        return {
            name: jax.make_array_from_process_local_data(self.batch, rows)
            for name, rows in batch.items()
        }
