"""Checks of scalar options; a traced value is checked for its shape only."""

import jax
import numpy as np
from jax.typing import ArrayLike

_CONDITIONS = {
    "not be negative": lambda x: x >= 0,
    "be positive": lambda x: x > 0,
    "be from 0 to less than 1": lambda x: 0 <= x < 1,
    "be from 0 to 1": lambda x: 0 <= x <= 1,
}


def check_scalar(name: str, value: ArrayLike, must: str) -> None:
    """Raises ValueError unless the value is a scalar and does what it must."""
    if np.shape(value) != ():
        raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}.")
    is_traced = isinstance(value, jax.core.Tracer)
    if not is_traced and not _CONDITIONS[must](np.asarray(value)):
        raise ValueError(f"{name} must {must}, got {value}.")
