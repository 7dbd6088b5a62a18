"""Command lines: what goes wrong gives one line and an exit code."""

import dataclasses
from typing import Annotated

import pytest
import tyro

from examples.common import command_line
from examples.common.runs import RunError


@dataclasses.dataclass(frozen=True)
class Train:
    """Train something."""

    out: str
    """Where to."""
    depth: int = 3


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw something."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
)


def run(*arguments, do):
    return command_line.run(
        Command, do, arguments=arguments, program="prog", description="What it does."
    )


def test_parsed_command_is_done():
    done = []
    assert run("train", "--out", "x", "--depth", "5", do=done.append) == 0
    assert done == [Train("x", depth=5)]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunError("--depth must be\n at least 1."), 2, "--depth must be at least 1."),
        (FileNotFoundError(2, "No such file", "a"), 2, "[Errno 2] No such file: 'a'"),
    ],
)
def test_what_goes_wrong_gives_one_line(capsys, error, code, line):
    def do(command):
        raise error

    assert run("plot", do=do) == code
    assert capsys.readouterr().err == f"error: {line}\n"


def test_mistakes_of_the_program_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run("plot", do=lambda command: 1 / 0)
