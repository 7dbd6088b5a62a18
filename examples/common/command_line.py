"""Command lines whose errors are one line and an exit code of 2."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
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
      The exit code: 0, that of a RunError, 2 for other errors, 130 if interrupted.
    """
    try:
        do(_parse(command, args=arguments, prog=program, description=description))
    except RunError as error:
        return _fail(str(error), error.code)
    except OSError as error:
        return _fail(f"{error.filename or program}: {error.strerror or error}.", 2)
    except KeyboardInterrupt:
        return _fail("interrupted.", 130)
    return 0


def _parse(command: Any, **options: Any) -> Any:
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(command, **options)
    except SystemExit as exit:
        if not exit.code:
            raise  # --help
        raise RunError(_one_line(messages.getvalue())) from None


def _one_line(boxed: str) -> str:
    """The text of tyro's boxed error, without its borders and its advice on --help."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    rows = [line.strip(" │╭╮╰╯─") for line in plain.splitlines()]
    text = " ".join(rows[1:])  # the first is the title
    return re.split(r"For full helptext|Argument helptext", text)[0].strip()


def _fail(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
