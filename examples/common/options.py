"""Options of a program: errors name the option and say what would be right."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.common.runs import RunError


def require(config: Any, name: str, holds: Any, what: str) -> None:
    """Raises RunError if `holds` is false: the option must be `what`."""
    if not holds:
        option = "--" + name.replace("_", "-")
        value = getattr(config, name)
        got = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise RunError(f"{option} must be {what}, got {got}.")


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
    return {
        field.name: field.default
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING
    }
