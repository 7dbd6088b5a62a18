"""How numbers are written on the pages."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def number(x: float, figures: int = 2) -> str:
    """With so many significant digits, zeros at the end too."""
    if not np.isfinite(x):
        return "not finite"
    if abs(x) >= 10**figures:
        return f"{x:,.0f}"
    # Python's own format goes over to exponents below 1e-4.
    if 0 < abs(x) < 1e-4:
        return f"{x:.{figures - 1}e}".replace("e-0", "e-")
    return f"{x:#.{figures}g}".rstrip(".")


def span(values: Iterable[float]) -> str:
    """The least and the largest of several numbers."""
    values = sorted(values)
    low, high = number(values[0]), number(values[-1])
    return low if low == high else f"{low} to {high}"


def listed(values: Iterable[Any]) -> str:
    """The different values: a, b and c."""
    words = [f"{x:,g}" for x in dict.fromkeys(values)]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
