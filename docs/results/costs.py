"""Tables of what things cost: times over those of another method in the same run."""

import numpy as np

from docs.results.records import ResultError, content, seconds
from docs.results.tables import number, table, with_source


def overhead() -> str:
    """Updates over those of adam alone, compiling over that of clip_by_block_rms."""
    record = content("overhead")
    settings = record["settings"]
    times = {name: np.median(t) for name, t in record["update_seconds"].items()}
    compiling = {n: sum(t) for n, t in record["trace_and_compile_seconds"].items()}
    cells = [
        [
            name if " " in name else f"`{name}`",
            f"{time / times['adam alone']:.2f}",
            f"{compiling[name] / compiling['clip_by_block_rms']:.2f}",
        ]
        for name, time in times.items()
    ]
    return with_source(
        table(["in front of adam", "update", "compile"], cells),
        ["overhead"],
        "`python -m benchmarks.overhead`",
        f"Medians of {settings['rounds']} rounds, and {settings['leaves']:,} small "
        "leaves.",
    )


SHOWN = (
    *("depth", "width", "model", "width_multiplier", "data", "optimizer"),
    *("batch_size", "points", "rounds"),
)
"""The settings of a benchmark that its table names."""


def times(file: str, command: str, over: str, compiling: bool = False) -> str:
    """Times of methods over the median of one of them, with quartiles."""
    methods = content(file)["methods"]
    if over not in methods:
        raise ResultError(f"{file} has no method {over}")
    first = np.median(seconds(file, over))
    header = ["", "time", "quartiles"] + (["compile time"] if compiling else [])
    cells = []
    for name in methods:
        low, median, high = np.quantile(seconds(file, name), [0.25, 0.5, 0.75]) / first
        row = [name, f"{median:.2f}", f"{low:.2f} to {high:.2f}"]
        if compiling:
            of_method, of_first = (methods[n]["compile_seconds"] for n in (name, over))
            row.append(f"{of_method / of_first:.2f}")
        cells.append(row)
    settings = content(file)["settings"]
    words = ", ".join(
        f"{name.replace('_', ' ')} {settings[name]:,}"
        if isinstance(settings[name], int)
        else f"{name.replace('_', ' ')} {settings[name]}"
        for name in SHOWN
        if name in settings
    )
    return with_source(
        table(header, cells),
        [file],
        f"`python -m benchmarks.{command}`",
        f"Times over that of {over}; {words}.",
    )


def derivatives() -> str:
    """The residual of a Laplacian and its gradient, beside other methods."""
    return times("pinn_derivatives", "pinn_derivatives", "ours", compiling=True)


def results_of(example: str) -> list[float]:
    """What a single-file example came to, for each seed."""
    return list(content("minimal_examples")["results"][example])


def largest_error() -> str:
    """Of the derivatives by any of the methods."""
    methods = content("pinn_derivatives")["methods"].values()
    return number(max(method["error"] for method in methods), 1)


def system_steps() -> str:
    """A step of Kovasznay flow, beside nested derivatives and jinns."""
    return times("system_steps", "system_steps", "ours")


def term_steps() -> str:
    """A step with balanced terms over one with a weighted sum."""
    return times("term_steps", "term_steps", "weighted sum of terms")


def image_steps() -> str:
    """A step of a classifier over that with BatchNorm."""
    return times("image_steps", "image_steps", "BatchNorm")
