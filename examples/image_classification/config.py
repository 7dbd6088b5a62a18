"""The options of a training run, and their checks."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from examples.common.command_line import require
from examples.common.optimizers import ScaleControl

ModelName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "efficientnetv2-b0",
    "efficientnetv2-s",
]
Norm = Literal["batch", "none"]
DataName = Literal["digits", "fashion-mnist", "cifar10", "cifar100", "folder"]
Initialization = Literal["variance-preserving", "depth-scaled"]
Optimizer = Literal["sgd", "adam", "adamw", "muon"]

PLACE = ("out", "resume", "data_dir", "mesh", "coordinator", "processes", "process")
"""Options of where a run takes place: results do not depend on them."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train an image classifier, with BatchNorm or with nothing in its place."""

    out: Path
    """Folder for settings, curves, checkpoints and results."""
    model: ModelName = "resnet50"
    """The network; for images of up to 64 pixels its stem has no strides."""
    norm: Norm = "none"
    """BatchNorm, or nothing in its place."""
    width_multiplier: float = 1.0
    """Factor for all channel counts."""
    initialization: Initialization = "variance-preserving"
    """Initial weights; depth-scaled: residual branches start smaller."""
    stochastic_depth: float | None = None
    """Drop rate at the last block; by default the published one."""
    data: DataName = "digits"
    """The data set; folder: anything that Hugging Face's datasets reads."""
    data_dir: Path | None = None
    """Its folder, or its name on the hub."""
    image_size: int | None = None
    """Height and width that images of a folder are resized to; 224 by default."""
    augment: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Random crops and flips, as is usual for the data set."""
    optimizer: Optimizer = "sgd"
    """The base optimizer; sgd has momentum 0.9."""
    scale_control: ScaleControl = "stablegrad-prediction"
    """Applied before the optimizer; -prediction: with the paper's reference."""
    epochs: int = 8
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step, over all devices."""
    accumulate: int = 1
    """Parts that a batch is processed in, one after the other, to save memory."""
    lr: float = 0.1
    """Peak learning rate, from which it falls to zero along a cosine."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up."""
    weight_decay: float = 0.0
    """Of all parameters but biases and scales; decoupled, except for sgd."""
    label_smoothing: float = 0.0
    """Probability that is spread over all classes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and their gradients; parameters are float32."""
    ema_decay: float = 0.0
    """Decay of a moving average of the parameters, which is then tested; 0: none."""
    seed: int = 0
    """Seed of initial weights, order of images and augmentation."""
    log_every: int = 10
    """Steps between two lines of the history."""
    checkpoint_every: int = 200
    """Steps between two checkpoints; each epoch ends with one too."""
    mesh: str = ""
    """Devices as data=N,fsdp=M, where fsdp shards parameters; by default all data."""
    coordinator: str | None = None
    """For several processes: host:port of the first, or auto on SLURM and TPU pods."""
    processes: int | None = None
    """Number of processes, if --coordinator is not auto."""
    process: int | None = None
    """Index of this process, if --coordinator is not auto."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue from the newest checkpoint in --out, if there is one."""

    def check(self) -> None:
        """Raises RunError, with the name of the option, if a value makes no sense."""
        for name in ("epochs", "batch_size", "accumulate", "log_every"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "width_multiplier"):
            value = getattr(self, name)
            require(self, name, 0 < value < math.inf, "a positive, finite number")
        for name in ("seed", "weight_decay", "warmup_epochs"):
            value = getattr(self, name)
            require(self, name, 0 <= value < math.inf, "at least 0, and finite")
        for name in ("label_smoothing", "ema_decay", "stochastic_depth"):
            value = getattr(self, name) or 0.0
            require(self, name, 0 <= value < 1, "at least 0 and below 1")
        whole = self.batch_size % self.accumulate == 0
        require(self, "accumulate", whole, f"a divisor of {self.batch_size}")
        is_folder = self.data == "folder"
        fits = is_folder or self.image_size is None
        require(self, "image_size", fits, "left out: it is for --data folder")
        if is_folder:
            what = "a folder with train/<class>/ and val/<class>/, of Parquet files, "
            what += "written by save_to_disk, or a name on the Hugging Face hub"
            require(self, "data_dir", self.data_dir, what)
        decays = self.weight_decay == 0 or self.optimizer != "adam"
        require(self, "weight_decay", decays, "0 for adam: adamw decays weights")

    def settings(self) -> dict[str, Any]:
        """The options that results depend on."""
        values = dataclasses.asdict(self)
        return {name: x for name, x in values.items() if name not in PLACE}
