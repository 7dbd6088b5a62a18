"""Named studies, and runs beside each other: a table, records, and figures."""

import json
from typing import get_args

import numpy as np
import pytest
from rich.console import Console

from examples.common import comparison
from examples.common.runs import Recording, RunError
from examples.pinn import __main__ as program
from examples.pinn import studies
from examples.pinn.scores import ERROR, JUDGE


def main(*arguments):
    return program.main([str(argument) for argument in arguments])


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by a made-up result; the names of what was trained."""
    names = []

    def train(config, console):
        config.check()
        with Recording(config.out, config.settings(), resume=config.resume) as run:
            if run.finished:
                return
            names.append(run.name)
            shape = (len(config.lr), config.seeds)
            rng = np.random.default_rng(config.depth)
            run.finish(
                lambda: {
                    "relative_l2": rng.uniform(0.01, 0.2, shape),
                    "stopped_at_step": np.full(shape, -1),
                    "steps_per_second": 100.0,
                }
            )

    monkeypatch.setattr(program, "train", train)
    return names


def record(name="run", errors=((0.1, 0.2, 0.3),), stopped=None, **settings):
    shape = np.shape(errors)
    defaults = {
        "depth": 4,
        "optimizer": "adam",
        "scale_control": "none",
        "lr": [10.0**-i for i in range(1, len(errors) + 1)],
    }
    return {
        "name": name,
        "settings": defaults | settings,
        "relative_l2": errors,
        "stopped_at_step": np.full(shape, -1).tolist() if stopped is None else stopped,
        "steps_per_second": 10.0,
    }


@pytest.mark.parametrize("name", get_args(studies.StudyName))
def test_every_method_of_a_study_has_the_same_rates_seeds_and_budget(name, tmp_path):
    runs = studies.runs(name, tmp_path, None, {})
    for run_name, config in runs.items():
        config.check()
        assert config.out == tmp_path / run_name
    assert len({(c.lr, c.seeds, c.steps, c.lbfgs_steps) for c in runs.values()}) == 1
    settings = {str(config.settings()) for config in runs.values()}
    assert len(settings) == len(runs)


def test_study_trains_what_is_not_finished(trained, tmp_path, capsys):
    arguments = ["study", "depth", "--out", tmp_path, "--depths", 3, 4, "--seeds", 2]
    arguments += ["--steps", 5, "--lr", 1e-3, 1e-2]
    assert main(*arguments, "--only", "depth4-adam-(none|clip)$") == 0
    assert trained == ["depth4-adam-none", "depth4-adam-clip"]
    settings = json.loads((tmp_path / trained[0] / "settings.json").read_text())
    assert (settings["steps"], settings["seeds"]) == (5, 2)
    capsys.readouterr()
    assert main(*arguments, "--only", "adam-none$") == 0
    assert trained[2:] == ["depth3-adam-none"]
    printed = capsys.readouterr().out
    table = printed[printed.index("quartiles") :]
    assert "depth3-adam-none" in table
    assert "depth4-adam-none" in table
    assert main(*arguments, "--only", "depth5") == 2
    assert main(*arguments, "--only", "none", "--depths", 0) == 2
    err = capsys.readouterr().err.splitlines()
    assert "--only depth5 is in the name of no run" in err[0]
    assert "--depth must be at least 1, got 0." in err[1]


def test_collected_runs_compare_as_their_folders_do(trained, tmp_path, capsys):
    arguments = ["--only", "adam-none$", "--depths", 3, 4, "--steps", 5]
    assert main("study", "depth", "--out", tmp_path / "runs", *arguments) == 0
    folders = sorted((tmp_path / "runs").iterdir())
    collected = tmp_path / "results" / "depth.json"
    assert main("collect", *folders, "--out", collected) == 0
    assert JUDGE.read([collected]) == JUDGE.read(folders)
    assert len(collected.read_text().splitlines()) == 2 + len(folders)
    capsys.readouterr()
    pictures, tables = [], []
    for paths in (folders, [collected]):
        out = tmp_path / "figure.png"
        assert main("compare", *paths, "--out", out) == 0
        tables.append(capsys.readouterr().out)
        pictures.append(out.read_bytes())
    assert tables[0] == tables[1]
    assert pictures[0] == pictures[1]
    (tmp_path / "other.json").write_text('{"runs": [{"test_accuracy": 0.9}]}')
    with pytest.raises(RunError, match="no run of this program: no "):
        JUDGE.read([tmp_path / "other.json"])


def test_scores_and_the_best_rate():
    found = record(errors=[[0.1, None, 0.3]], stopped=[[-1, -1, 5]])
    np.testing.assert_array_equal(ERROR.scores(found), [[0.1, np.inf, np.inf]])
    assert ERROR.best_rate(np.array([[0.1, 9.0, 9.0], [1.0, 1.0, 1.0]])) == 1
    assert ERROR.best_rate(np.array([[0.1, np.inf, np.inf], [9.0, 9.0, 9.0]])) == 1
    assert comparison.quartiles(np.array([5.0, 1.0, 3.0, 2.0, np.inf])) == (2, 3, 5)
    low, median, high = comparison.quartiles(np.array([1.0, 2.0, np.inf, np.inf]))
    assert (low, median, high) == (2, np.inf, np.inf)


def test_table_has_the_best_rate_of_each_run():
    console = Console(width=100)
    runs = [
        record("good", [[0.5, 0.5, 0.5], [0.01, 0.02, 0.3]]),
        record("bad", [[None, None, None]]) | {"steps_per_second": None},
    ]
    with console.capture() as capture:
        JUDGE.show(runs, console)
    rows = {
        row[0]: row[1:] for row in map(str.split, capture.get().splitlines()) if row
    }
    good = ["0.01", "2.00e-02", "1.00e-02", "-", "3.00e-01", "2/3", "10.0"]
    assert rows["good"] == good
    assert rows["bad"] == ["0.1", "inf", "inf", "-", "inf", "0/3", "-"]


def test_methods_are_told_apart_by_the_settings_that_differ():
    runs = [
        record(group_by="layer", width=8, lr=[1.0]),
        record(scale_control="stablegrad", group_by="layer", width=8),
        record(scale_control="stablegrad", group_by="tree", width=8, depth=5),
    ]
    assert comparison.method_labels(runs, JUDGE.axis) == [
        "adam",
        "stablegrad + adam, group_by layer",
        "stablegrad + adam, group_by tree",
    ]


def test_a_line_for_each_method():
    """Over rates if there is one depth, else at its best rate over depth."""

    def lines(*runs):
        found = comparison.lines(runs, ERROR, JUDGE.axis)
        return {name: {x: list(y) for x, y in of.items()} for name, of in found.items()}

    slow = record("slow", [[0.1], [0.2]])
    clipped = record("clipped", [[0.3]], scale_control="clip")
    over_rates = {"adam": {0.1: [0.1], 0.01: [0.2]}, "clip + adam": {0.1: [0.3]}}
    assert lines(slow, clipped) == over_rates
    fast, deep = record("fast", [[0.05]], lr=[1e-3]), record("deep", [[0.4]], depth=8)
    # Runs that differ in their rates are taken together.
    assert lines(slow, fast, deep) == {"adam": {4: [0.05], 8: [0.4]}}
    # Runs that differ in nothing are each by themselves.
    assert list(lines(slow, slow)) == ["1: slow", "2: slow"]


def test_figure_has_a_row_for_each_method(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(comparison.pictures.plt, "close", drawn.append)
    errors = [[0.05, 0.2, None], [None, None, None]]
    runs = [record(errors=errors, width=width) for width in range(11)]
    comparison.draw(runs, tmp_path / "figure.png", ERROR, JUDGE.axis)
    (figure,) = drawn
    above, below = figure.axes
    assert len(below.get_yticklabels()) == 11
    assert above.get_yscale() == "log"
    counts = [text.get_text() for text in below.texts]
    assert counts.count("1/3") == 11
    ticks = [text.get_text() for text in below.get_xticklabels()]
    assert ticks == ["0.01", "0.1"]
    monkeypatch.undo()
    comparison.plt.close(figure)
