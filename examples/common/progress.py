"""Live progress of a run in columns, on a terminal or in a log."""

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def bar(console: Console | None = None) -> Progress:
    """Steps done, time gone and left, and a text of what matters now."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}"),
        console=console,
    )


def numbers(values: np.ndarray) -> str:
    """A few numbers in little space; "-" for what is not finite."""
    return " ".join(f"{v:.1e}" if np.isfinite(v) else "-" for v in np.ravel(values))
