"""Named studies, and runs beside each other: a table, records, and figures."""

import json
from typing import get_args

import matplotlib.pyplot as plt
import numpy as np
import pytest

from examples.common.comparison import quartiles
from examples.common.runs import Recording
from examples.pinn import __main__ as program
from examples.pinn import studies, train
from examples.pinn.studies import JUDGE


def main(*arguments):
    return program.main([str(argument) for argument in arguments])


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by a made-up result; the names of what was trained."""
    names = []

    def made_up(config, console):
        config.check()
        with Recording(config.out, config.settings(), resume=config.resume) as run:
            if run.finished:
                return
            names.append(run.name)
            shape = (len(config.lr), config.seeds)
            rng = np.random.default_rng(config.depth)
            results = {
                "relative_l2": rng.uniform(0.01, 0.2, shape),
                "stopped_at_step": np.full(shape, -1),
                "steps_per_second": 100.0,
            }
            run.finish(lambda: results)

    monkeypatch.setattr(train, "train", made_up)
    return names


def record(name="run", errors=((0.1, 0.2, 0.3),), stopped=-1, **settings):
    rates = [10.0**-i for i in range(1, len(errors) + 1)]
    settings = {"depth": 4, "optimizer": "adam", "lr": rates} | settings
    return {
        "name": name,
        "settings": settings,
        "relative_l2": errors,
        "stopped_at_step": np.full(np.shape(errors), stopped).tolist(),
        "steps_per_second": 10.0,
    }


METHODS = sorted({*get_args(studies.StudyName)} - {"symptoms"})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_a_study_has_the_same_rates_seeds_and_budget(name, tmp_path):
    runs = studies.runs(name, tmp_path, None, {})
    for run_name, config in runs.items():
        config.check()
        assert config.out == tmp_path / run_name
    assert len({(c.lr, c.seeds, c.steps, c.lbfgs_steps) for c in runs.values()}) == 1
    settings = {str(config.settings()) for config in runs.values()}
    assert len(settings) == len(runs)


def test_a_symptom_and_its_cure_are_the_same_problem(tmp_path):
    runs = studies.runs("symptoms", tmp_path, None, {})
    cured = {name: runs.pop(f"{name}-cured") for name in [*runs] if "cured" not in name}
    assert runs.keys() == cured.keys()
    for name, config in runs.items():
        config.check()
        cured[name].check()
        before, after = config.settings(), cured[name].settings()
        differ = {x for x in before if before[x] != after[x]}
        assert len(differ - {"condition_weight"}) == 1


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
    assert main("compare", tmp_path / "other.json") == 2
    assert "is no run of this program: no " in capsys.readouterr().err


def test_quartiles_of_seeds_that_failed():
    inf = np.inf
    assert quartiles([5.0, 1.0, 3.0, 2.0, inf]) == (2, 3, 5)
    assert quartiles([1.0, 2.0, inf, inf]) == (2, inf, inf)


def shown(capsys, *runs):
    """The rows of the table of some runs, by their first word."""
    capsys.readouterr()
    JUDGE.show(runs)
    lines = capsys.readouterr().out.splitlines()
    return {row[0]: row[1:] for row in map(str.split, lines) if row}


def test_table_has_the_best_rate_of_each_run(capsys):
    good = record("good", [[0.5, 0.5, 0.5], [0.01, 0.02, 0.3]], depth=8)
    bad = record("bad", [[0.1, None, 0.3]], stopped=[-1, -1, 5])
    rows = shown(capsys, good, bad | {"steps_per_second": None})
    expected = ["0.01", "2.00e-02", "1.00e-02", "-", "3.00e-01", "2/3", "10.0"]
    assert rows["good"] == expected
    assert rows["bad"] == ["0.1", "inf", "1.00e-01", "-", "inf", "0/3", "-"]
    # Rates are compared by the seeds that all of them have.
    fewer, more = record(errors=[[0.3]], lr=[1.0]), record(errors=[[0.4, 0.01, 0.01]])
    assert shown(capsys, fewer, more)["adam"][:2] == ["1", "3.00e-01"]


def drawn(monkeypatch, path, *runs):
    """The scores of each row of a figure, and its ticks."""
    closed = []
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", closed.append)
        JUDGE.draw(runs, path / "figure.png")
    (figure,) = closed
    above, below = figure.axes
    plt.close(figure)
    lines = [container.lines[0].get_ydata() for container in above.containers]
    names = [text.get_text() for text in below.get_yticklabels()]
    ticks = [text.get_text() for text in below.get_xticklabels()]
    return {name: list(y) for name, y in zip(names, lines, strict=True)}, ticks


def test_methods_are_told_apart_by_the_settings_that_differ(monkeypatch, tmp_path):
    options = {"group_by": "layer", "scale_control": "stablegrad", "width": 8}
    runs = [
        record(group_by="layer", width=8, lr=[1.0]),
        record(**options),
        record(**options | {"group_by": "tree", "order": "after"}),
    ]
    names, _ = drawn(monkeypatch, tmp_path, *runs)
    assert list(names) == [
        "adam",
        "stablegrad + adam, group_by layer",
        "adam + stablegrad, group_by tree",
    ]


def test_a_line_for_each_method(monkeypatch, tmp_path):
    """Over rates if there is one depth, else at its best rate over depth."""

    def lines(*runs):
        return drawn(monkeypatch, tmp_path, *runs)

    slow = record("slow", [[0.1], [0.2]])
    clipped = record("clipped", [[0.3], [None]], scale_control="clip")
    over_rates = {"adam": [0.2, 0.1], "clip + adam": [2.0, 0.3]}
    assert lines(slow, clipped) == (over_rates, ["0.01", "0.1"])
    fast, deep = record("fast", [[0.05]], lr=[1e-3]), record("deep", [[0.4]], depth=8)
    # Runs that differ in their rates are taken together.
    assert lines(deep, slow, fast) == ({"adam": [0.05, 0.4]}, ["4", "8"])
    # Runs that differ in nothing are each by themselves.
    assert list(lines(slow, slow)[0]) == ["1: slow", "2: slow"]
