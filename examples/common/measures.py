"""What runs are judged by: a score for each learning rate and seed."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from examples.common.records import Record

Scores = Sequence[np.ndarray] | np.ndarray
"""For each learning rate those of its seeds; seeds that all rates have come first."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A score, and which scores are good."""

    name: str
    key: str
    """The key of the scores in metrics.json."""
    scores: Callable[[Record], Scores]
    """Those of a record."""
    lower_is_better: bool
    threshold: float
    """A seed counts as trained if its score is better."""
    limits: tuple[float, float]
    """Scores outside are drawn at these limits: a failed run may have any score."""
    logarithmic: bool
    untrained: tuple[float, str] | None
    """The score of a network that has learned nothing, and its name."""
    digits: str
    """Format of a score in a table."""

    def best_rate(self, scores: Scores) -> int:
        """The index of the learning rate with the best median.

        Rates are compared by the same number of seeds, the smallest of any rate.
        """
        common = min(map(len, scores))
        medians = [np.median(seeds[:common]) for seeds in scores]
        return int(np.argmin(medians) if self.lower_is_better else np.argmax(medians))

    def trained(self, scores: np.ndarray) -> int:
        """How many seeds trained."""
        better = np.less if self.lower_is_better else np.greater
        return int(np.sum(better(scores, self.threshold)))

    @property
    def good(self) -> str:
        """When a seed counts as trained, in a few characters."""
        if np.isinf(self.threshold):
            return "finite"
        return f"{'<' if self.lower_is_better else '>'} {self.threshold:g}"


def quartiles(scores: np.ndarray) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the seeds; may be infinite."""
    # "nearest": there is nothing between a number and infinity.
    low, high = np.quantile(scores, [0.25, 0.75], method="nearest")
    return float(low), float(np.median(scores)), float(high)
