"""Commands on finished runs, the same in every program."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from examples.common import comparison, pictures, records
from examples.common.comparison import Axis
from examples.common.measures import Measure, quartiles
from examples.common.records import Record
from examples.common.runs import RunError, check_writable

Paths = tyro.conf.Positional[tuple[Path, ...]]


@dataclasses.dataclass(frozen=True)
class Plot:
    """Figures of a run, into its folder."""

    run: Path
    """Folder of the run."""


@dataclasses.dataclass(frozen=True)
class Collect:
    """One JSON file of several finished runs: settings and results."""

    runs: Paths
    """Folders of finished runs."""
    out: Path
    """File for the records."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """One table and one figure of several runs.

    The figure is over learning rates if all runs have the same depth or model.
    Otherwise it is over depth or model, each method at its best rate.
    """

    runs: Paths
    """Folders of finished runs, or files that `collect` wrote."""
    out: Path = Path("comparison.png")
    """File for the figure."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """How the runs of a program are read, judged and compared."""

    measures: tuple[Measure, ...]
    """The first that all runs have is what they are judged by."""
    axis: Axis
    speed: str
    """The key in metrics.json of how fast a run was."""
    together: Callable[[list[Record]], list[Record]] = lambda runs: runs
    """Makes one record of the runs that belong together."""

    def read(self, paths: Iterable[Path]) -> list[Record]:
        """The records of folders of runs and of files of collected ones."""
        return self.together(records.read(paths, self._keys))

    @property
    def _keys(self) -> set[str]:
        return {measure.key for measure in self.measures}

    def measure_of(self, found: list[Record]) -> Measure:
        """What runs are judged by: the first measure that all of them have."""
        common = (m for m in self.measures if all(m.key in run for run in found))
        measure = next(common, None)
        if measure is None:
            raise RunError(
                f"these runs have no score in common: {', '.join(sorted(self._keys))}."
            )
        return measure

    def show(self, found: list[Record], console: Console) -> None:
        """Prints a table: each record at its best learning rate."""
        measure = self.measure_of(found)
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        table.caption = (
            f"{measure.name} at the best learning rate, median and quartiles over seeds"
        )
        table.add_column("run", overflow="fold")
        speed = self.speed.replace("_per_", "/")
        for column in ("lr", "median", "quartiles", measure.good, speed):
            table.add_column(column, justify="right", no_wrap=True)
        for record in found:
            scores = measure.scores(record)
            index = measure.best_rate(scores)
            low, median, high = quartiles(scores[index])
            digits, rate = measure.digits, record[self.speed]
            table.add_row(
                record["name"],
                f"{record['settings']['lr'][index]:g}",
                f"{median:{digits}}",
                f"{low:{digits}} - {high:{digits}}",
                f"{measure.trained(scores[index])}/{len(scores[index])}",
                "-" if rate is None else f"{rate:.1f}",
            )
        console.print(table, soft_wrap=False)

    def collect(self, options: Collect, console: Console) -> None:
        found = records.read(records.some(options.runs, "collect"), self._keys)
        records.collect(found, options.out)
        console.print(f"{len(found)} runs: {options.out}", soft_wrap=True)

    def compare(self, options: Compare, console: Console) -> None:
        runs = records.some(options.runs, "compare")
        pictures.check_name(options.out)
        found = self.read(runs)
        self.show(found, console)
        check_writable(options.out.absolute().parent, "--out")
        matplotlib.use("agg")
        comparison.draw(found, options.out, self.measure_of(found), self.axis)
        console.print(f"Figure: {options.out}", soft_wrap=True)
