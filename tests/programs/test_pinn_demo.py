"""python -m examples.pinn demo: methods side by side."""

import numpy as np
import pytest
from program import strict

from examples.common import progress
from examples.common.runs import RunError
from examples.pinn import __main__ as program
from examples.pinn import demo

pytestmark = pytest.mark.usefixtures("quick_compilation")


def main(*arguments):
    return program.main([str(argument) for argument in arguments])


@pytest.mark.smoke
def test_demo_prints_a_table_and_draws_a_figure(tmp_path, capsys, monkeypatch):
    compared = {name: demo.METHODS[name] for name in demo.COMPARED}
    monkeypatch.setattr(demo, "METHODS", compared)
    small = {"depth": 1, "width": 4, "interior_points": 8}
    monkeypatch.setattr(demo, "CASES", {"poisson": small})
    assert main("demo", "--out", tmp_path, "--steps", 2, "--seeds", 2) == 0
    printed = capsys.readouterr().out
    for text in ("poisson, weight 1", "poisson, balanced", "Figure:", "steps/s"):
        assert text in printed
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    runs = strict(tmp_path / "demo.json")["runs"]
    assert [run["settings"]["terms"] for run in runs] == ["weighted", "balanced"]
    assert np.isfinite([run["relative_l2"] for run in runs]).all()


def test_demo_ends_with_the_first_method_that_fails(tmp_path, capsys, monkeypatch):
    """The others do not go on behind the back of whoever reads the message."""
    interrupted = []

    def train(config, console, bars):
        if config.out.name == "poisson, weight 1":
            raise RunError("no space left.")
        with progress.Steps(console, "", 10**6, 0, bars) as steps:
            try:
                for step in range(10**6):
                    steps.show(step, "")
            except KeyboardInterrupt:
                interrupted.append(config.out.name)
                raise

    monkeypatch.setattr(demo, "train", train)
    assert main("demo", "--out", tmp_path) == 2
    assert capsys.readouterr().err == "error: no space left.\n"
    assert len(interrupted) == len(demo.CASES) * len(demo.METHODS) - 1
