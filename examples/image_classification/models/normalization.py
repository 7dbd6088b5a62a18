"""What stands behind every convolution: one choice, injected where models are built."""

from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

NormName = Literal["batch", "none"]


class Norm(Protocol):
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array: ...


class NormFactory(Protocol):
    def __call__(self, features: int, *, rngs: nnx.Rngs) -> Norm: ...


class BatchNorm(nnx.Module):
    """Statistics of the batch in training, their running averages otherwise.

    Computed in float32, whatever the dtype of the layers around it: running averages
    rounded to bfloat16 would not be those that were learned.
    """

    def __init__(self, features: int, *, momentum: float, epsilon: float, dtype: Any):
        self.batch = nnx.BatchNorm(
            features,
            momentum=momentum,
            epsilon=epsilon,
            dtype=jnp.float32,
            # Scale and bias start at constants. The model's rngs are left as they are,
            # so that with norms and without a seed gives the same convolutions.
            rngs=nnx.Rngs(0),
        )
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.batch(x, use_running_average=not train).astype(self.dtype)


class Identity(nnx.Module):
    """No normalisation: holds nothing and does nothing."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        return x


def norm_factory(
    name: NormName, *, momentum: float, epsilon: float, dtype: Any
) -> NormFactory:
    """The norm of a model; its constants are used where it has any."""

    def batch(features: int, *, rngs: nnx.Rngs) -> Norm:
        del rngs
        return BatchNorm(features, momentum=momentum, epsilon=epsilon, dtype=dtype)

    def none(features: int, *, rngs: nnx.Rngs) -> Norm:
        del features, rngs
        return Identity()

    return {"batch": batch, "none": none}[name]
