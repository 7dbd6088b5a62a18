"""ResNets and EfficientNetV2, with batch normalisation or without any.

Every model maps

    model(images [n, h, w, c], *, train, key) -> logits [n, num_classes] in float32

and holds parameters (nnx.Param) and running statistics (nnx.BatchStat), nothing else:
no random state, so that a training step is a pure function of its arguments.
"""

from examples.image_classification.models import efficientnet, resnet
from examples.image_classification.models.layers import Layers, Network

__all__ = ["Layers", "Network", "build"]


def build(layers: Layers) -> Network:
    """The model of a configuration, with its initial parameters."""
    family = resnet if layers.config.model in resnet.MODELS else efficientnet
    return family.build(layers)
