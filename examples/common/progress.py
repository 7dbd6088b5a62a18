"""Live progress of runs: bars on a terminal, a line now and then in a log."""

import contextlib

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


class Bars(Progress):
    """The display of one run, or of several side by side; a context manager.

    Runs that are still going when it is left are interrupted.
    """

    def __init__(self, console: Console):
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=3600,  # a chunk of steps may take minutes
        )
        self.left = False

    def __exit__(self, *exception) -> None:
        self.left = True
        super().__exit__(*exception)


class Steps(contextlib.ExitStack):
    """Steps done, time gone and left, and a text of what matters now.

    A context manager. `bars` is a display that the run shares with others; by default
    the run has its own.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        total: int,
        done: int = 0,
        bars: Bars | None = None,
    ):
        super().__init__()
        self.console, self._total = console, total
        self._bars = self.enter_context(Bars(console)) if bars is None else bars
        task = self._bars.add_task(name, total=total, completed=done, now="compiling")
        self._task = next(t for t in self._bars.tasks if t.id == task)

    def show(self, done: int, now: str) -> None:
        """Says that `done` steps are done."""
        if self._bars.left:
            raise KeyboardInterrupt
        task, total, before = self._task, self._total, self._task.completed
        self._bars.update(task.id, completed=done, now=now)
        if self.console.is_terminal:
            return
        if done * LOG_LINES // total > before * LOG_LINES // total:
            left = "?" if task.time_remaining is None else f"{task.time_remaining:.0f}"
            self.console.print(
                f"{task.description} {done}/{total}, {task.elapsed:.0f} s gone, "
                f"{left} s left, {now}",
                soft_wrap=True,
            )


def numbers(values: np.ndarray) -> str:
    """A few numbers in little space; "-" for what is not finite."""
    return " ".join(f"{v:.1e}" if np.isfinite(v) else "-" for v in np.ravel(values))
