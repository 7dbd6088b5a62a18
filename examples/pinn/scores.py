"""What runs of this program are judged by, and what they are compared over."""

import functools

import numpy as np

from examples.common.command_line import defaults
from examples.common.comparison import Axis, Judge, Measure, Record
from examples.pinn.config import OF_OLDER_RUNS, Config

SCORE = "relative_l2"
"""The key of the errors in metrics.json."""
LOSS = "loss"
"""That of the losses, which problems without a known solution are judged by."""


def _final(record: Record, key: str) -> np.ndarray:
    """Of shape (rates, seeds); infinite where training stopped."""
    # What is not finite is null in JSON, and NaN here.
    values = np.asarray(record[key], float)
    stopped = np.asarray(record["stopped_at_step"]) >= 0
    return np.where(stopped | np.isnan(values), np.inf, values)


def final_errors(record: Record) -> np.ndarray:
    """Relative L2 errors, or losses if the solution is not known."""
    return _final(record, SCORE if SCORE in record else LOSS)


ERROR = Measure(
    "relative L2 error",
    key=SCORE,
    scores=final_errors,
    lower_is_better=True,
    threshold=0.1,
    limits=(0.0, 2.0),
)
FINAL_LOSS = Measure(
    "loss",
    key=LOSS,
    scores=functools.partial(_final, key=LOSS),
    lower_is_better=True,
    threshold=np.inf,
    limits=(0.0, 1e6),
)
DEPTH = Axis(
    "depth",
    "hidden layers",
    ignored=frozenset({"seeds", "chunk", "checkpoint_every"}),
    defaults=defaults(Config) | OF_OLDER_RUNS,
)
JUDGE = Judge((ERROR, FINAL_LOSS), DEPTH, speed="steps_per_second")
