"""A table of finished runs."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from examples.pinn.records import (
    TRAINED,
    Record,
    best_rate,
    final_errors,
    quartiles,
    trained,
)


def table(records: Sequence[Record]) -> Table:
    """A line for each run, at its own best learning rate."""
    rendered = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    rendered.caption = (
        "relative L2 error at the best learning rate, median and quartiles over seeds"
    )
    rendered.add_column("run", overflow="fold")
    for column in ("lr", "median", "quartiles", f"< {TRAINED}", "steps/s"):
        rendered.add_column(column, justify="right", no_wrap=True)
    for record in records:
        errors = final_errors(record)
        index = best_rate(errors)
        low, median, high = quartiles(errors[index])
        speed = record["steps_per_second"]
        rendered.add_row(
            record["name"],
            f"{record['settings']['lr'][index]:g}",
            f"{median:.2e}",
            f"{low:.1e} - {high:.1e}",
            f"{trained(errors[index])}/{errors.shape[1]}",
            "-" if speed is None else f"{speed:.1f}",
        )
    return rendered
