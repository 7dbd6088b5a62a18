"""Named studies, the records of their runs, and the figures drawn from them."""

import json
from typing import get_args

import numpy as np
import pytest
from rich.console import Console

from examples.common import comparison, records
from examples.common.measures import quartiles
from examples.common.runs import Recording
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
                    "loss": rng.uniform(size=shape),
                    "stopped_at_step": np.full(shape, -1),
                    "steps_per_second": 100.0,
                    "compile_seconds": 1.0,
                }
            )

    monkeypatch.setattr(program, "train", train)
    return names


def record(name="run", errors=((0.1, 0.2, 0.3),), stopped=None, **settings):
    errors = np.asarray(errors, object)
    stopped = np.full(errors.shape, -1) if stopped is None else np.asarray(stopped)
    defaults = {
        "depth": 4,
        "optimizer": "adam",
        "scale_control": "none",
        "lr": [10.0**-i for i in range(1, len(errors) + 1)],
        "seeds": errors.shape[1],
    }
    return {
        "name": name,
        "settings": defaults | settings,
        "relative_l2": errors.tolist(),
        "stopped_at_step": stopped.tolist(),
        "steps_per_second": 10.0,
    }


# --- Studies ---


@pytest.mark.parametrize("name", get_args(studies.StudyName))
def test_every_method_of_a_study_has_the_same_rates_seeds_and_budget(name, tmp_path):
    runs = studies.runs(name, tmp_path, None, {})
    budgets = set()
    for run_name, config in runs.items():
        config.check()
        assert config.out == tmp_path / run_name
        assert config.resume
        budgets.add((config.lr, config.seeds, config.steps, config.lbfgs_steps))
    assert len(budgets) == 1
    settings = [str(config.settings()) for config in runs.values()]
    assert len(set(settings)) == len(settings)


def test_depth_study_is_what_it_is_said_to_be(tmp_path):
    runs = studies.runs("depth", tmp_path, None, {})
    assert {config.depth for config in runs.values()} == {4, 8, 16, 32, 64, 128}
    assert {config.seeds for config in runs.values()} == {5}
    assert len(runs) == 6 * (10 + 5)


def test_changes_hold_for_all_runs(tmp_path):
    changes = {"lr": (1e-2,), "steps": 7, "dtype": "float64"}
    runs = studies.runs("burgers", tmp_path, (3, 5), changes)
    assert len(runs) == 2 * 8
    assert {config.depth for config in runs.values()} == {3, 5}
    assert {(c.lr, c.steps, c.dtype) for c in runs.values()} == {
        ((1e-2,), 7, "float64")
    }


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
    assert "depth3-adam-none (1 of 2)" in printed
    table = printed[printed.index("quartiles") :]
    assert "depth3-adam-none" in table
    assert "depth4-adam-none" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["width"], "depth"),
        (["depth", "--only", "depth5"], "--only must be found in the name of a run"),
        (["depth", "--only", "("], "--only must be a regular expression"),
        (["depth", "--depths", "0"], "--depth must be at least 1, got 0."),
        (["depth", "--seeds", "0"], "--seeds must be at least 1, got 0."),
        (["depth", "--lr", "-1"], "--lr must be one positive"),
    ],
)
def test_bad_options_of_a_study(trained, tmp_path, capsys, arguments, message):
    assert main("study", *arguments, "--out", tmp_path / "runs") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert trained == []
    assert not (tmp_path / "runs").exists()


def test_study_with_other_settings_than_before(trained, tmp_path, capsys):
    arguments = ["study", "depth", "--out", tmp_path, "--only", "depth4-adam-none"]
    assert main(*arguments, "--steps", 5) == 0
    assert main(*arguments, "--steps", 6) == 2
    assert "steps was 5 in" in capsys.readouterr().err.replace("and is", "in")


# --- Records ---


def test_collected_runs_come_back_as_they_were(trained, tmp_path, capsys):
    arguments = ["--only", "adam-none$", "--depths", 3, 4, "--steps", 5]
    assert main("study", "depth", "--out", tmp_path / "runs", *arguments) == 0
    folders = sorted((tmp_path / "runs").iterdir())
    collected = tmp_path / "results" / "depth.json"
    assert main("collect", *folders, "--out", collected) == 0
    assert records.read([collected], {"relative_l2"}) == records.read(
        folders, {"relative_l2"}
    )
    assert len(collected.read_text().splitlines()) == 2 + len(folders)
    (first, _) = json.loads(collected.read_text())["runs"]
    for key in ("settings", "versions", "device", "relative_l2", "steps_per_second"):
        assert key in first
    capsys.readouterr()
    figures = [tmp_path / "folders.png", tmp_path / "collected.png"]
    assert main("compare", *folders, "--out", figures[0]) == 0
    from_folders = capsys.readouterr().out
    assert main("compare", collected, "--out", figures[1]) == 0
    from_file = capsys.readouterr().out
    assert from_folders.split("Figure")[0] == from_file.split("Figure")[0]
    assert figures[0].read_bytes() == figures[1].read_bytes()


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"runs": [{"name": "a"}]}'])
def test_file_that_collect_did_not_write(tmp_path, capsys, text):
    path = tmp_path / "runs.json"
    path.write_text(text)
    assert main("compare", path, "--out", tmp_path / "figure.png") == 2
    assert "runs.json" in capsys.readouterr().err


def test_runs_of_another_program(trained, tmp_path):
    with Recording(tmp_path / "run", {}, resume=False) as run:
        run.finish(lambda: {"test_accuracy": 0.9})
    with pytest.raises(program.RunError, match="no run of this program: no relative"):
        records.read([tmp_path / "run"], {"relative_l2"})


def test_what_stopped_or_is_not_finite_has_an_infinite_error():
    found = record(errors=[[0.1, None, 0.3]], stopped=[[-1, -1, 5]])
    np.testing.assert_array_equal(ERROR.scores(found), [[0.1, np.inf, np.inf]])


def test_best_rate_has_the_lowest_median():
    assert ERROR.best_rate(np.array([[0.1, 9.0, 9.0], [1.0, 1.0, 1.0]])) == 1
    assert ERROR.best_rate(np.array([[0.1, np.inf, np.inf], [9.0, 9.0, 9.0]])) == 1
    assert ERROR.best_rate(np.full((2, 2), np.inf)) == 0


def test_quartiles_are_of_seeds_that_there_are():
    assert quartiles(np.array([5.0, 1.0, 3.0, 2.0, np.inf])) == (2, 3, 5)
    low, median, high = quartiles(np.array([1.0, 2.0, np.inf, np.inf]))
    assert (low, median, high) == (2, np.inf, np.inf)


def test_table_has_the_best_rate_of_each_run():
    console = Console(width=100)
    runs = [
        record("good", [[0.5, 0.5, 0.5], [0.01, 0.02, 0.3]]),
        record("bad", [[None, None, None]]) | {"steps_per_second": None},
    ]
    with console.capture() as capture:
        JUDGE.show(runs, console)
    lines = capture.get().splitlines()
    (good,) = [line.split() for line in lines if line.startswith((" good", "good"))]
    (bad,) = [line.split() for line in lines if line.startswith((" bad", "bad"))]
    assert good == [
        "good",
        "0.01",
        "2.00e-02",
        "1.00e-02",
        "-",
        "3.00e-01",
        "2/3",
        "10.0",
    ]
    assert bad == ["bad", "0.1", "inf", "inf", "-", "inf", "0/3", "-"]


# --- Comparisons ---


def test_runs_of_one_depth_are_drawn_over_their_rates():
    runs = [record("a", [[0.1], [0.2]]), record("b", [[0.3]], scale_control="clip")]
    series = comparison.over_rates(runs, ERROR, JUDGE.axis)
    assert [line.label for line in series] == ["adam", "clip + adam"]
    assert series[0].scores == {0.1: [0.1], 0.01: [0.2]}
    # Runs of one method have their names.
    runs = [record("a", [[0.1], [0.2]]), record("b", [[0.3]])]
    series = comparison.over_rates(runs, ERROR, JUDGE.axis)
    assert [line.label for line in series] == ["a", "b"]


def test_a_method_has_one_colour_in_every_figure():
    def styles(*labels):
        series = [comparison.Series(label, {}) for label in labels]
        return dict(zip(labels, comparison._styles(series), strict=True))

    one, other = styles("muon", "adam", "a"), styles("b", "adam", "adam, balanced")
    assert one["adam"]["color"] == other["adam"]["color"]
    assert one["adam"]["color"] not in (one["muon"]["color"], one["a"]["color"])
    assert other["adam, balanced"]["color"] == one["adam"]["color"]
    assert other["adam, balanced"]["linestyle"] != other["adam"]["linestyle"]


def test_runs_of_several_depths_are_drawn_at_their_best_rates():
    series = comparison.over_axis(
        [
            record("a", [[0.5], [0.2]], depth=4),
            record("b", [[0.1], [0.3]], depth=8),
            record("c", [[0.4]], depth=8, scale_control="clip"),
        ],
        ERROR,
        JUDGE.axis,
    )
    assert {line.label: line.scores for line in series} == {
        "adam": {4: [0.2], 8: [0.1]},
        "clip + adam": {8: [0.4]},
    }


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


def test_runs_that_a_figure_over_depth_cannot_tell_apart(tmp_path):
    runs = [record("a"), record("b"), record("c", depth=8)]
    message = "two runs of adam with depth 4 and a rate of 0.1: b and"
    with pytest.raises(program.RunError, match=message):
        comparison.draw(runs, tmp_path / "figure.png", ERROR, JUDGE.axis)


def test_runs_that_differ_in_their_rates_are_taken_together():
    runs = [
        record("a", [[0.5, 0.4]], lr=[1e-3]),
        record("b", [[2.0, 2.0], [0.1, 0.2]], lr=[1e-2, 1e-4]),
        record("c", [[0.3, 0.3]], lr=[1e-3], depth=8),
    ]
    (series,) = comparison.over_axis(runs, ERROR, JUDGE.axis)
    np.testing.assert_array_equal(series.scores[4], [0.1, 0.2])
    np.testing.assert_array_equal(series.scores[8], [0.3, 0.3])


@pytest.mark.parametrize(("number", "depths"), [(1, (4,)), (3, (4, 64)), (11, (4, 64))])
def test_figure_has_a_row_for_each_method(monkeypatch, tmp_path, number, depths):
    drawn = []
    monkeypatch.setattr(comparison.plt, "close", drawn.append)
    runs = [
        record(
            f"method {i}",
            [[0.05, 0.2, None], [None, None, None]],
            stopped=[[-1, 3, -1], [1, 1, 1]],
            depth=depth,
            width=i,
        )
        for i in range(number)
        for depth in depths
    ]
    comparison.draw(runs, tmp_path / "figure.png", ERROR, JUDGE.axis)
    (figure,) = drawn
    above, below = figure.axes
    assert len(below.get_yticklabels()) == number
    assert above.get_yscale() == "log"
    counts = [text.get_text() for text in below.texts]
    assert counts.count("1/3") == number * len(depths)
    ticks = [text.get_text() for text in below.get_xticklabels()]
    assert ticks == (["4", "64"] if len(depths) > 1 else ["0.01", "0.1"])
    assert (tmp_path / "figure.png").stat().st_size > 5000
    monkeypatch.undo()
    comparison.plt.close(figure)
