"""A table of finished runs."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from examples.common.measures import Measure, quartiles
from examples.common.records import Record


def table(records: Sequence[Record], measure: Measure, speed: str) -> Table:
    """A line for each record, at its own best learning rate.

    `speed` is the entry of a record that says how fast it ran.
    """
    rendered = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    rendered.caption = (
        f"{measure.name} at the best learning rate, median and quartiles over seeds"
    )
    rendered.add_column("run", overflow="fold")
    columns = ("lr", "median", "quartiles", measure.good, speed.replace("_per_", "/"))
    for column in columns:
        rendered.add_column(column, justify="right", no_wrap=True)
    for record in records:
        scores = measure.scores(record)
        index = measure.best_rate(scores)
        low, median, high = quartiles(scores[index])
        digits, rate = measure.digits, record[speed]
        rendered.add_row(
            record["name"],
            f"{record['settings']['lr'][index]:g}",
            f"{median:{digits}}",
            f"{low:{digits}} - {high:{digits}}",
            f"{measure.trained(scores[index])}/{len(scores[index])}",
            "-" if rate is None else f"{rate:.1f}",
        )
    return rendered
