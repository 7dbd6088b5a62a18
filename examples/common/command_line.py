"""Command lines: errors name the option, in one line, with an exit code of 2."""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from examples.common.runs import RunError


def run(
    command: Any,
    do: Callable[[Any], None],
    *,
    arguments: Sequence[str] | None = None,
    program: str,
    description: str | None,
) -> int:
    """Parses the command line into `command` by tyro, and does it.

    Returns:
      The exit code: 0, that of a RunError, 2 for a file that cannot be read or written,
      130 if interrupted. What tyro cannot parse, it names itself and exits with 2.
    """
    try:
        do(tyro.cli(command, args=arguments, prog=program, description=description))
    except (RunError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return getattr(error, "code", 2)
    except KeyboardInterrupt:
        return 130
    return 0


def require(config: Any, name: str, holds: Any, what: str) -> None:
    """Raises RunError if `holds` is false: the option must be `what`."""
    if not holds:
        value = getattr(config, name)
        got = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise RunError(f"--{name.replace('_', '-')} must be {what}, got {got}.")


def checked_settings(cls: Any, out: Path, settings: Mapping[str, Any]) -> Any:
    """A configuration of the class `cls`, from the settings of a run's folder."""
    try:
        config = cls(out=out, **settings)
        config.check()
    except (KeyError, TypeError, RunError) as error:
        reason = str(error).rstrip(".")
        raise RunError(
            f"the settings of {out} are not those of this program: {reason}."
        ) from None
    return config


def defaults(cls: Any) -> dict[str, Any]:
    """The default values of a configuration class."""
    fields = dataclasses.fields(cls)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def given(options: Any, names: Sequence[str]) -> dict[str, Any]:
    """Those of the named options that the user gave: the others are None."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def checked(runs: Mapping[str, Any], only: str) -> dict[str, Any]:
    """The runs whose name the regular expression `only` is found in, checked."""
    chosen = {name: run for name, run in runs.items() if re.search(only, name)}
    if not chosen:
        raise RunError(f"--only {only} is in the name of no run, such as {min(runs)}.")
    for run in chosen.values():
        run.check()
    return chosen
