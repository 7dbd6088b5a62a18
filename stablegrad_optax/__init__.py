"""Layer-wise gradient scale control for optax: the StableGrad transformation."""

from stablegrad_optax import initializers, plotting
from stablegrad_optax._diagnostics import layer_scales, tabulate
from stablegrad_optax._reference import reference_scale, value_and_grad_with_reference
from stablegrad_optax._stablegrad import StableGradState, stablegrad

__all__ = [
    "StableGradState",
    "initializers",
    "layer_scales",
    "plotting",
    "reference_scale",
    "stablegrad",
    "tabulate",
    "value_and_grad_with_reference",
]

__version__ = "0.1.0"
