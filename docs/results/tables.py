"""Tables in Markdown, and how numbers are written.

Links are as from the root of the repository; `pages` makes them those of a page.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from docs.results.records import Result, device, path_of
from examples.common.options import defaults
from examples.pinn.config import OF_OLDER_RUNS, Config

NOT_RESULTS = ("out", "chunk", "checkpoint_every", "lbfgs_points", "resume")
"""Options that do not change the result of a run, or only with others."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; rows may be shorter than the header."""
    cells = [list(header), ["---"] * len(header)]
    cells += [[*row, *[""] * (len(header) - len(row))] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def with_source(
    table: str, files: Sequence[str], command: str, settings: str = ""
) -> str:
    """A table, and below it one line: settings, the raw values, what makes them."""
    paths = [path_of(file) for file in files]
    names = [Path(path).name for path in paths] if len(paths) > 1 else ["Raw values"]
    links = ", ".join(
        f"[{name}]({path})" for name, path in zip(names, paths, strict=True)
    )
    if len(paths) > 1:
        links = f"Raw values: {links}"
    devices = " and ".join(dict.fromkeys(f"a {device(file)}" for file in files))
    line = f"{links}, made on {devices.replace('a NV', 'an NV')} by {command}."
    return f"{table}\n\n{settings}{' ' if settings else ''}{line}\n"


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


def score(result: Result, x: float) -> str:
    """A score as its measure is written: errors by digits, accuracies by places."""
    if result.measure.logarithmic:
        return number(x)
    # An accuracy of zero stands for a loss that was not finite.
    return f"{x:.3f}" if x > 0 else "not finite"


def median(result: Result) -> str:
    return score(result, result.median)


def seeds(result: Result) -> str:
    """The scores of all seeds, in their order."""
    return ", ".join(score(result, x) for x in result.scores)


def trained(result: Result) -> str:
    """How many seeds trained, of how many."""
    return f"{result.trained} of {len(result.scores)}"


def span(values: Iterable[float], figures: int = 2) -> str:
    """The least and the largest of several numbers."""
    values = sorted(values)
    low, high = number(values[0], figures), number(values[-1], figures)
    return low if low == high else f"{low} to {high}"


def listed(values: Iterable[Any]) -> str:
    """The different values: a, b and c."""
    words = [x if isinstance(x, str) else f"{x:,g}" for x in dict.fromkeys(values)]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def train_command(program: str, config: type[Any], result: Result) -> str:
    """The command line that makes the runs of a result, from their settings."""
    known = {**defaults(config), "lr": None}
    settings = {**result.settings, "lr": result.rates}
    options = []
    for name in (field.name for field in dataclasses.fields(config)):
        value = settings.get(name)
        if name in NOT_RESULTS or name not in settings or value == known.get(name):
            continue
        values = value if isinstance(value, tuple | list) else (value,)
        words = " ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in values)
        options.append(f"--{name.replace('_', '-')} {words}")
    return f"`python -m {program} train {' '.join(options)} --out run`"


def pinn_command(result: Result) -> str:
    settings = {**OF_OLDER_RUNS, **result.settings}
    # A problem in a file of one's own is recorded with the folder of that file.
    settings["problem"] = Path(settings["problem"]).name
    return train_command(
        "examples.pinn", Config, dataclasses.replace(result, settings=settings)
    )
