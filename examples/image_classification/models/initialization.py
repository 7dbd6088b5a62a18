r"""Initial weights: every layer keeps the second moment of activations at one.

A convolution with an activation behind it takes `variance_preserving(activation)`. The
others deviate, each for a reason:

- Nothing follows (the last convolution of a residual branch, the projection of a
  shortcut, the classifier): the gain of the identity, 1. Twice that, ReLU's, would
  double the second moment, with no ReLU to halve it.
- A squeeze-and-excitation gate: its last layer has the gain of the identity too, so
  that the gate's sigmoid(z) starts near 1/2 and in its linear range. That factor is
  made up for by the convolution after the gate, which has nothing behind it: it takes
  `variance_preserving(sigmoid)`, the inverse of E[sigmoid(z)²] for z ~ N(0, 1).

Fan-in is counted per group, so that of a k x k depthwise convolution is k². Biases
(the classifier's and those of the gates) start at zero.

A residual block then adds to its shortcut a branch as large as the shortcut, so that
without normalisation second moments may double with each block. "depth-scaled" divides
the last convolution of each of the L residual branches by √L: branches add L times 1/L.
Behind the convolution batch normalisation undoes this.

For ReLU all this is exact for random weights in the limit of many channels, away from
borders padded with zeros. It is not for SiLU, which does not commute with scaling: the
second moment of its output grows by a fifth in the first layer.
"""

import functools

import jax

from examples.image_classification.config import Initialization
from stablegrad_optax.initializers import Activation, variance_preserving

Initializer = jax.nn.initializers.Initializer


def branch_end(
    initialization: Initialization,
    num_branches: int,
    activation: Activation | None = None,
) -> Initializer:
    """For the last convolution of one of this many residual branches.

    The activation is the one behind it, or that of the gate before it.
    """
    initializer = gain_of(activation)
    if initialization == "variance-preserving":
        return initializer
    return _scaled(initializer, num_branches**-0.5)


@functools.cache
def gain_of(activation: Activation | None) -> Initializer:
    """variance_preserving; None for the identity."""
    return variance_preserving(_identity if activation is None else activation)


def _identity(x: jax.Array) -> jax.Array:
    return x


def _scaled(initializer: Initializer, factor: float) -> Initializer:
    def scaled(*args, **kwargs):
        return factor * initializer(*args, **kwargs)

    return scaled
