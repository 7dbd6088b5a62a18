"""What runs are judged by: a score for each learning rate and seed."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from examples.common.records import Record

Scores = Sequence[np.ndarray] | np.ndarray
"""For each learning rate the scores of its seeds, those first that every rate has."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A score, and which scores are good."""

    name: str
    scores: Callable[[Record], Scores]
    """Those of a record."""
    lower_is_better: bool
    threshold: float
    """A seed counts as trained if its score is better."""
    limits: tuple[float, float]
    """Scores outside are drawn at these: what did not train may have any."""
    logarithmic: bool
    untrained: tuple[float, str]
    """The score of a network that has learnt nothing, and its name."""
    digits: str
    """Format of a score in a table."""

    def best_rate(self, scores: Scores) -> int:
        """The index of the learning rate with the best median.

        A rate with more seeds than another is judged by as many as that one has.
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
        """In a few characters, when a seed counts as trained."""
        return f"{'<' if self.lower_is_better else '>'} {self.threshold:g}"


def quartiles(scores: np.ndarray) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the seeds; may be infinite."""
    # Of seeds that there are: between a number and infinity lies nothing.
    low, high = np.quantile(scores, [0.25, 0.75], method="nearest")
    return float(low), float(np.median(scores)), float(high)
