"""Gradient scale control for optax: between layers, and between loss terms."""

from stablegrad_optax import initializers, plotting
from stablegrad_optax._balance import BalanceTermsState, balance_terms
from stablegrad_optax._diagnostics import layer_scales, tabulate
from stablegrad_optax._reference import reference_scale, value_and_grad_with_reference
from stablegrad_optax._stablegrad import stablegrad
from stablegrad_optax._terms import term_alignment, term_scales, value_and_grad_of_terms

__all__ = [
    "BalanceTermsState",
    "balance_terms",
    "initializers",
    "layer_scales",
    "plotting",
    "reference_scale",
    "stablegrad",
    "tabulate",
    "term_alignment",
    "term_scales",
    "value_and_grad_of_terms",
    "value_and_grad_with_reference",
]

__version__ = "0.2.0.dev0"
