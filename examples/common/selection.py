"""Which runs of a named set are made, and with which changes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from examples.common.runs import RunError


class Checked(Protocol):
    """A configuration that knows what is wrong with it."""

    def check(self) -> None: ...


C = TypeVar("C", bound=Checked)


def given(options: Any, names: Sequence[str]) -> dict[str, Any]:
    """The options among `names` that were given, which are not None."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def checked(runs: Mapping[str, C], only: str) -> dict[str, C]:
    """The runs in whose name the expression `only` is found; they are checked."""
    try:
        chosen = {name: run for name, run in runs.items() if re.search(only, name)}
    except re.error as error:
        raise RunError(f"--only must be a regular expression: {error}.") from None
    if not chosen:
        raise RunError(
            f"--only must be found in the name of a run, got {only}; one is "
            f"{next(iter(runs))}."
        )
    for run in chosen.values():
        run.check()
    return chosen
