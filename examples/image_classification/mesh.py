"""The mesh of devices, over one process or several, and how arrays lie on it."""

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


def connect(config: Config) -> None:
    """Makes this process one of several, if the options say so."""
    address, number, process = config.coordinator, config.processes, config.process
    if address is None and number is None and process is None:
        return
    # The backend of CPU collectives; GPUs and TPUs have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        found = None if address == "auto" else address
        jax.distributed.initialize(found, number, process)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            "--coordinator must be host:port, with --processes and --process, or auto, "
            f"got {address}: {error}"
        ) from None


def mesh_of(config: Config) -> Mesh:
    """The mesh that the options name, over all devices of all processes."""
    text, devices = config.mesh, jax.device_count()
    found = re.fullmatch(r"(?:data=([1-9]\d*))?,?(?:fsdp=([1-9]\d*))?", text)
    if found is None:
        raise RunError(f"--mesh must be like data=4,fsdp=2, got {text}.")
    fsdp = int(found[2] or 1)
    data = int(found[1] or devices // fsdp)
    if data * fsdp != devices:
        raise RunError(f"--mesh {text} is not one of {devices} devices.")
    parts = devices * config.accumulate
    if config.batch_size % parts:
        raise RunError(
            f"--batch-size must be a multiple of {parts}, the number of devices "
            f"times --accumulate, got {config.batch_size}."
        )
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def place_of(mesh: Mesh, leaf: Any) -> NamedSharding:
    """Leaves are divided over fsdp along their longest axis; small ones are not."""
    parts = mesh.shape["fsdp"]
    divisible = [a for a, n in enumerate(leaf.shape) if n % parts == 0]
    if parts == 1 or math.prod(leaf.shape) < 2**10 or not divisible:
        return NamedSharding(mesh, P())
    axis = max(divisible, key=lambda a: leaf.shape[a])
    return NamedSharding(mesh, P(*[None] * axis, "fsdp"))


def put(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch divided among all devices; each process has its own rows."""
    sharding = NamedSharding(mesh, P(AXES))
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }
