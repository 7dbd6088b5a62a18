"""Live progress of a run: a bar on a terminal, a line now and then in a log."""

import time
from types import TracebackType

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

LOG_LINES = 10
"""Lines of a whole run in a log."""


class Steps:
    """Steps done, time gone and left, and a text of what matters now."""

    def __init__(self, console: Console, name: str, total: int, done: int = 0):
        self.console = console
        self._name, self._total = name, total
        self._first = self._done = done
        self._start = time.monotonic()
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[now]}"),
                console=console,
            )
            self._task = self._bar.add_task(
                name, total=total, completed=done, now="compiling"
            )

    def __enter__(self) -> "Steps":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, now: str) -> None:
        """Says that so many steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, now=now)
        elif done * LOG_LINES // self._total > self._done * LOG_LINES // self._total:
            gone = time.monotonic() - self._start
            left = gone * (self._total - done) / max(done - self._first, 1)
            self.console.print(
                f"{self._name} {done}/{self._total}, {gone:.0f} s gone, "
                f"{left:.0f} s left, {now}",
                soft_wrap=True,
            )
        self._done = done


def numbers(values: np.ndarray) -> str:
    """A few numbers in little space; "-" for what is not finite."""
    return " ".join(f"{v:.1e}" if np.isfinite(v) else "-" for v in np.ravel(values))
