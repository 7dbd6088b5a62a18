"""What the expressions on the pages may call: the functions of tables, and these."""

import inspect
from collections.abc import Iterable
from typing import Any

from docs.results import costs, images, pinns, sources, terms, verdicts
from docs.results.records import best
from docs.results.tables import median, number


def score(file: str, label: str = "", rate: float | None = None, **wanted: Any) -> str:
    """The median over the seeds of a method such as "clip + adam".

    It is that at the best rate unless another is given. Further settings tell the runs
    from others in the file.
    """
    of_method = pinns.method(label) if label else {}
    result = best(file, **of_method, **wanted)
    return median(result if rate is None else result.at(rate))


def least(values: Iterable[float], figures: int = 2) -> str:
    """The smallest of several numbers, with so many digits."""
    return number(min(values), figures)


def most(values: Iterable[float], figures: int = 2) -> str:
    """The largest of several numbers, with so many digits."""
    return number(max(values), figures)


NAMES = {
    name: function
    for module in (costs, images, pinns, sources, terms, verdicts)
    for name, function in inspect.getmembers(module, inspect.isfunction)
} | {function.__name__: function for function in (score, least, most)}
