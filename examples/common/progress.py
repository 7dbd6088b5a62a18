"""Live progress of runs: bars on a terminal, a line now and then in a log."""

import contextlib
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_LINES = 10
"""Lines of a whole run in a log, equally far apart in expected time."""


class Bars(Progress):
    """The display of one run, or of several side by side; a context manager.

    Runs that are still going when it is left are interrupted.
    """

    def __init__(self, console: Console):
        super().__init__(
            *Progress.get_default_columns()[:2],
            TextColumn("{task.fields[steps]}", style="progress.download"),
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

    A context manager. `bars` is a display that the run shares with others.
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
        self.console, self._total, self._done = console, total, done
        self._cost: Callable[[int], float] = float
        self._bars = bars or self.enter_context(Bars(console))
        steps = f"{done}/{total}"
        self._id = self._bars.add_task(
            name, total=total, completed=done, steps=steps, now=""
        )

    def weigh(self, cost: Callable[[int], float]) -> None:
        """For steps of several lengths: `cost(n)` is how long the first n take."""
        self._cost = cost
        done, total = cost(self._done), cost(self._total)
        self._bars.update(self._id, completed=done, total=total)

    def show(self, done: int, now: str) -> None:
        """Says that `done` steps are done."""
        if self._bars.left:
            raise KeyboardInterrupt
        task = next(task for task in self._bars.tasks if task.id == self._id)
        before, after, total = map(self._cost, (self._done, done, self._total))
        self._done, steps = done, f"{done}/{self._total}"
        self._bars.update(self._id, completed=after, steps=steps, now=now)
        if self.console.is_terminal:
            return
        if after * LOG_LINES // total > before * LOG_LINES // total:
            left = "?" if task.time_remaining is None else f"{task.time_remaining:.0f}"
            self.console.print(
                f"{task.description} {steps}, {task.elapsed:.0f} s gone, "
                f"{left} s left, {now}",
                soft_wrap=True,
            )
