"""Why a loss is no longer finite: which layer's gradient went first."""

from collections.abc import Mapping, Sequence

import numpy as np

from examples.common.runs import RunError

MEMORY = 100
"""Steps whose scales are looked at."""
JUMP = 10.0
"""A scale that is so many times its median before has left its usual range."""


class DivergedError(RunError):
    """The loss is no longer finite."""

    code = 1

    def __init__(
        self, step: int, loss: float, scales: Sequence[Mapping[str, float]], hint: str
    ):
        """At a step, with the scales of each layer up to there, oldest first."""
        self.step, self.layer = step, None
        why = "the gradients gave no warning"
        found = first_to_go(scales)
        if found is not None:
            back, self.layer, ratio = found
            how = "was no longer finite"
            if np.isfinite(ratio):
                how = f"was {ratio:.0f} times its median before"
            why = f"the gradient of {self.layer} went first: its scale {how} at step "
            why += str(step - back)
        super().__init__(f"the loss is {loss} at step {step}; {why}. {hint}")


def first_to_go(
    scales: Sequence[Mapping[str, float]],
) -> tuple[int, str, float] | None:
    """The layer whose scale was the first to leave its usual range.

    Returns:
      How many steps before the last one that was, the layer, and the ratio of its
      scale to the median of those before; None if all layers went at once without
      one that stood out.
    """
    names = list(scales[0]) if scales else []
    values = np.array([[step[name] for name in names] for step in scales], float)
    for i in range(1, len(values)):
        now, median = values[i], np.median(values[:i], axis=0)
        ratios = np.divide(now, median, out=np.zeros_like(now), where=median > 0)
        ratios[~np.isfinite(now)] = np.inf
        worst = ratios.max()
        if worst >= JUMP:
            first = np.flatnonzero(ratios == worst)
            if len(first) == len(names) > 1:
                return None
            return len(values) - 1 - i, names[first[-1]], float(worst)
    return None
