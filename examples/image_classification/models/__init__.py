"""ResNets and EfficientNetV2, with batch normalisation or without any.

build() makes a model by name. Every model maps

    model(images [n, h, w, c], *, train, key) -> logits [n, num_classes] in float32

and holds parameters (nnx.Param) and running statistics (nnx.BatchStat), nothing else:
no state of random numbers, so that a training step is a pure function of its arguments.
"""

from typing import Any, get_args

import jax.numpy as jnp
from flax import nnx

from examples.common.runs import RunError
from examples.image_classification.config import ModelName
from examples.image_classification.models import efficientnet, resnet
from examples.image_classification.models.initialization import Initialization
from examples.image_classification.models.layers import Layers, Options
from examples.image_classification.models.network import Network
from examples.image_classification.models.normalization import NormName, norm_factory

__all__ = ["Initialization", "ModelName", "Network", "NormName", "build"]


def build(
    name: ModelName,
    *,
    num_classes: int,
    in_channels: int = 3,
    norm: NormName = "batch",
    width_multiplier: float = 1.0,
    small_images: bool = False,
    stochastic_depth: float | None = None,
    initialization: Initialization = "variance-preserving",
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> Network:
    """Makes a model with its initial parameters.

    Args:
      name: one of ModelName.
      num_classes: the number of logits.
      in_channels: channels of the images.
      norm: what stands behind every convolution (normalization.py).
      width_multiplier: what all channel counts are multiplied by; multiples of 8, but
        for those that are too small.
      small_images: a stem that keeps the size of images of about 32 pixels; nothing
        else changes.
      stochastic_depth: the rate at which residual branches are dropped in training; it
        rises linearly from 0 at the first block. None for the model's published rate.
      initialization: of the residual branches (initialization.py).
      dtype: of the computation; parameters, statistics and logits are float32.
      rngs: randomness of the initial parameters.

    Raises:
      RunError: if an argument is out of its range.
    """
    _check_choice("model", name, ModelName)
    _check_choice("norm", norm, NormName)
    _check_choice("initialization", initialization, Initialization)
    for what, count in {"num_classes": num_classes, "in_channels": in_channels}.items():
        if count < 1:
            raise RunError(f"{what} must be at least 1, got {count}.")
    if not 0 < width_multiplier < float("inf"):
        raise RunError(f"width_multiplier must be positive, got {width_multiplier}.")

    family = resnet if name in resnet.MODELS else efficientnet
    rate = family.STOCHASTIC_DEPTH if stochastic_depth is None else stochastic_depth
    if not 0 <= rate < 1:
        raise RunError(f"stochastic_depth must be in [0, 1), got {rate}.")
    layers = Layers(
        norm=norm_factory(
            norm, momentum=family.MOMENTUM, epsilon=family.EPSILON, dtype=dtype
        ),
        dtype=dtype,
        rngs=rngs,
    )
    options = Options(
        num_classes=num_classes,
        in_channels=in_channels,
        width_multiplier=width_multiplier,
        small_images=small_images,
        stochastic_depth=rate,
        initialization=initialization,
    )
    return family.build(name, layers, options)


def _check_choice(what: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        names = ", ".join(get_args(choices))
        raise RunError(f"{what} must be one of {names}, got {value!r}.")
