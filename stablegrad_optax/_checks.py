"""Checks of scalar options; a traced value is checked for its shape only."""

import jax
import numpy as np
from jax.typing import ArrayLike


def not_negative(name: str, value: ArrayLike) -> None:
    """Raises ValueError unless it is a scalar that is not negative."""
    _scalar(name, value)
    if _is_concrete(value) and np.asarray(value) < 0:
        raise ValueError(f"{name} must not be negative, got {value}.")


def positive(name: str, value: ArrayLike) -> None:
    """Raises ValueError unless it is a positive scalar."""
    _scalar(name, value)
    if _is_concrete(value) and not np.asarray(value) > 0:
        raise ValueError(f"{name} must be positive, got {value}.")


def at_least(least: float, name: str, value: ArrayLike) -> None:
    """Raises ValueError unless it is a scalar and not less than `least`."""
    _scalar(name, value)
    if _is_concrete(value) and not np.asarray(value) >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def _scalar(name: str, value: ArrayLike) -> None:
    if np.shape(value) != ():
        raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}.")


def _is_concrete(x: ArrayLike) -> bool:
    return not isinstance(x, jax.core.Tracer)
