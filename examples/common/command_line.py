"""Command lines: errors name the option, in one line, with an exit code of 2."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import tyro

from examples.common.runs import RunError


def run(
    commands: Mapping[str, Callable[..., None]],
    arguments: Sequence[str] | None,
    *,
    program: str,
    description: str | None,
) -> int:
    """Runs the command that the arguments name; its parameters are the options.

    Returns:
      The exit code: 0, that of a RunError, 2 for a file that cannot be read or written,
      130 if interrupted. What tyro cannot parse, it names itself and exits with 2.
    """
    matplotlib.use("agg")
    try:
        tyro.extras.subcommand_cli_from_dict(
            dict(commands), args=arguments, prog=program, description=description
        )
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


def checked(runs: Mapping[str, Any], only: str) -> dict[str, Any]:
    """The runs whose name the regular expression `only` is found in, checked."""
    chosen = {name: run for name, run in runs.items() if re.search(only, name)}
    if not chosen:
        raise RunError(f"--only {only} is in the name of no run, such as {min(runs)}.")
    for run in chosen.values():
        run.check()
    return chosen
