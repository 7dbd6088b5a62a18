"""Mistakes on a command line: one line that names the option, and exit code 2."""

import dataclasses
from typing import Annotated, Literal

import pytest
import tyro

from examples.common import command_line
from examples.common.runs import RunError


@dataclasses.dataclass(frozen=True)
class Train:
    """Train something."""

    out: str
    """Where to."""
    problem: Literal["easy", "hard"] = "easy"
    depth: int = 3


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw something."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
)


def run(arguments, do=lambda command: None):
    return command_line.run(
        Command, do, arguments=arguments, program="prog", description="What it does."
    )


def test_parsed_command_is_done():
    done = []
    assert run(["train", "--out", "x", "--depth", "5"], done.append) == 0
    assert done == [Train("x", depth=5)]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "--out", "x", "--problem", "no"], ["--problem", "easy", "hard"]),
        (["train", "--out", "x", "--depth", "much"], ["--depth", "int", "much"]),
        (["train", "--depth", "5"], ["--out"]),
        (["train", "--out"], ["--out"]),
        (["train", "--out", "x", "--dept", "5"], ["--dept"]),
        (["draw"], ["draw", "train", "plot"]),
        ([], ["train", "plot"]),
    ],
)
def test_mistakes_give_one_line(capsys, monkeypatch, arguments, parts):
    monkeypatch.setenv("COLUMNS", "40")  # boxes are broken into lines somewhere
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not set("─│╭╰\x1b") & set(err)
    for part in parts:
        assert part in err


def raising(error):
    def do(command):
        raise error

    return do


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunError("--depth must be\n at least 1."), 2, "--depth must be at least 1."),
        (FileNotFoundError(2, "No such file", "a.npy"), 2, "a.npy: No such file."),
        (OSError("odd"), 2, "prog: odd."),
        (KeyboardInterrupt(), 130, "interrupted."),
    ],
)
def test_what_goes_wrong_gives_one_line(capsys, error, code, line):
    assert run(["plot"], raising(error)) == code
    assert capsys.readouterr().err == f"error: {line}\n"


def test_mistakes_of_the_program_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(["plot"], raising(ZeroDivisionError()))


def test_help_is_no_mistake(capsys):
    with pytest.raises(SystemExit) as exit:
        run(["--help"])
    assert not exit.value.code
    assert "What it does." in capsys.readouterr().out
