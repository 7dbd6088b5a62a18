"""Which runs of a named set to make, and with which changes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from examples.common.runs import RunError


class Checked(Protocol):
    """A configuration that can check its own options."""

    def check(self) -> None: ...


C = TypeVar("C", bound=Checked)


def given(options: Any, names: Sequence[str]) -> dict[str, Any]:
    """Those of the named options that the user gave: the others are None."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def checked(runs: Mapping[str, C], only: str) -> dict[str, C]:
    """The runs whose name the regular expression `only` is found in, checked."""
    try:
        chosen = {name: run for name, run in runs.items() if re.search(only, name)}
    except re.error as error:
        raise RunError(f"--only must be a regular expression: {error}.") from None
    if not chosen:
        raise RunError(
            f"--only must be found in the name of a run, got {only}; one name is "
            f"{next(iter(runs))}."
        )
    for run in chosen.values():
        run.check()
    return chosen
