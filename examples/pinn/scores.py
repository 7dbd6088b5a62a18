"""What runs of this program are judged by, and what they are compared over."""

from pathlib import Path

import numpy as np

from examples.common.comparison import Judge, Measure, Record
from examples.pinn.config import OF_OLDER_RUNS, Config

SCORE = "relative_l2"
"""The key of the errors in metrics.json."""

JUDGE = Judge(
    measures=(
        Measure(
            "relative L2 error",
            key=SCORE,
            lower_is_better=True,
            threshold=0.1,
            highest=2.0,
        ),
        # For problems without a known solution.
        Measure(
            "loss", key="loss", lower_is_better=True, threshold=np.inf, highest=1e6
        ),
    ),
    axis="depth",
    defaults={**vars(Config(Path())), **OF_OLDER_RUNS},
    speed="steps_per_second",
)


def final_scores(record: Record) -> np.ndarray:
    """Relative L2 errors by rate and seed, or losses if the solution is not known."""
    return JUDGE.measure_of([record]).scores(record)


def best_rate(scores: np.ndarray) -> int:
    """The index of the learning rate with the best median."""
    return int(np.argmin(np.median(scores, axis=1)))
