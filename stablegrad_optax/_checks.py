"""Checks of scalar options; a traced value is checked for its shape only."""

import jax
import numpy as np
from jax.typing import ArrayLike


def not_negative(name: str, value: ArrayLike) -> None:
    """Raises ValueError unless it is a scalar that is not negative."""
    _check(name, value, lambda x: x >= 0, "not be negative")


def positive(name: str, value: ArrayLike) -> None:
    """Raises ValueError unless it is a positive scalar."""
    _check(name, value, lambda x: x > 0, "be positive")


def in_unit_interval(name: str, value: ArrayLike) -> None:
    """Raises ValueError unless it is a scalar from 0 to less than 1."""
    _check(name, value, lambda x: 0 <= x < 1, "be from 0 to less than 1")


def is_traced(value: ArrayLike) -> bool:
    """Whether its value is unknown until the program runs."""
    return isinstance(value, jax.core.Tracer)


def _check(name, value, condition, text):
    if np.shape(value) != ():
        raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}.")
    if not is_traced(value) and not condition(np.asarray(value)):
        raise ValueError(f"{name} must {text}, got {value}.")
