"""Finds out why a loss is no longer finite: which layer's gradient went first."""

import collections
from collections.abc import Iterable, Mapping

import numpy as np

from examples.common.runs import RunError

MEMORY = 100
"""Steps that are remembered."""
JUMP = 10.0
"""A scale that is so many times its median before has left its usual range."""


class DivergedError(RunError):
    """The loss is no longer finite."""

    code = 1

    def __init__(self, step: int, layer: str | None, text: str):
        super().__init__(text)
        self.step, self.layer = step, layer


class Watch:
    """Looks at every step's loss, and remembers the scales of the layers."""

    def __init__(self, hint: str):
        self._hint = hint
        self._scales: collections.deque[Mapping[str, float]] = collections.deque(
            maxlen=MEMORY
        )

    def look(self, first: int, losses: Iterable, scales: Iterable[Mapping]) -> None:
        """At consecutive steps from `first` on; raises DivergedError."""
        for step, (loss, layers) in enumerate(zip(losses, scales, strict=True), first):
            self._scales.append({name: float(x) for name, x in layers.items()})
            if not np.isfinite(loss):
                raise self._diverged(step, float(loss))

    def _diverged(self, step: int, loss: float) -> DivergedError:
        found = first_to_go(list(self._scales))
        text = f"the loss is {loss} at step {step}"
        if found is None:
            return DivergedError(
                step, None, f"{text}; the gradients gave no warning. {self._hint}"
            )
        back, layer, ratio = found
        when = step - back
        how = (
            f"was {ratio:.0f} times its median before"
            if np.isfinite(ratio)
            else "was no longer finite"
        )
        return DivergedError(
            step,
            layer,
            f"{text}; the gradient of {layer} went first: its scale {how} at step "
            f"{when}. {self._hint}",
        )


def first_to_go(scales: list[Mapping[str, float]]) -> tuple[int, str, float] | None:
    """The layer whose scale was the first to leave its usual range.

    Args:
      scales: of each layer at consecutive steps, oldest first.

    Returns:
      How many steps before the last one that was, the layer, and the ratio of its
      scale to the median of those before; None if all layers went at once without
      one that stood out.
    """
    for i in range(1, len(scales)):
        ratios = {}
        for name, scale in scales[i].items():
            before = [s[name] for s in scales[:i]]
            median = float(np.median(before))
            if not np.isfinite(scale):
                ratios[name] = np.inf
            elif median > 0:
                ratios[name] = scale / median
        if not ratios:
            continue
        worst = max(ratios.values())
        layers = [name for name, ratio in ratios.items() if ratio == worst]
        if worst >= JUMP:
            if len(layers) == len(scales[i]) > 1:
                return None
            return len(scales) - 1 - i, layers[-1], worst
    return None
