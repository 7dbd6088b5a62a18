"""What the benchmarks share: options, timing, tables and records."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import rich

from benchmarks import common

FOUND = {
    "ours": {"seconds": [2.0, 4.0, 30.0], "compile_seconds": 1.0},
    "other": {"seconds": [1.0, 2.0, 3.0], "compile_seconds": 12.34},
}


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    rounds: int = 1
    depths: tuple[int, ...] = (1, 2)
    data_dir: Path | None = None


def test_every_function_is_called_once_per_round_in_random_order():
    calls = []

    def function(name):
        return lambda: calls.append(name) or len(calls)

    results = common.in_turns({name: function(name) for name in "abc"}, 20, "")
    rounds = [tuple(calls[i : i + 3]) for i in range(0, 60, 3)]
    assert all(set(names) == set("abc") for names in rounds)
    assert len(set(rounds)) > 1
    assert {name: len(values) for name, values in results.items()} == dict.fromkeys(
        "abc", 20
    )


def test_repeated_steps_go_on_from_the_last_result():
    seen = []
    timed = common.repeated(lambda x: seen.append(x) or x + 1, 0)
    assert min(timed(), timed()) >= 0
    assert seen == [0, 1, 2]


def test_ratios_are_over_the_median_of_the_first():
    ratios = common.ratios(FOUND)
    np.testing.assert_allclose(ratios["ours"], [0.75, 1.0, 4.25])
    np.testing.assert_allclose(ratios["other"], [0.375, 0.5, 0.625])


def test_table_has_a_row_for_each_method(capsys):
    rich.print(common.time_table("title", FOUND, compile_seconds=".1f"))
    printed = capsys.readouterr().out
    for text in ("over ours", "compile s", "2000.0", "0.50 (0.38-0.62)", "12.3"):
        assert text in printed


def test_record_keeps_five_digits_and_no_paths(tmp_path):
    out = tmp_path / "record.json"
    options = Options(out=out, data_dir=tmp_path)
    record = common.save(options, {"numbers": [123456.789, 1.23456789e-6]})
    assert record["numbers"] == [123456.789, 1.23456789e-6]
    written = json.loads(out.read_text())
    assert written["numbers"] == [123460.0, 1.2346e-06]
    assert written["settings"] == {"rounds": 1, "depths": [1, 2]}
    assert str(tmp_path) not in out.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be positive, got 0"),
        ({"depths": (4, -1)}, "depths must be positive, got -1"),
        ({"out": Path("missing/x.json")}, "out must be in an existing folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(options, message, monkeypatch, capsys):
    monkeypatch.setattr(common.tyro, "cli", lambda kind: kind(**options))
    with pytest.raises(SystemExit) as exit_info:
        common.run(Options, lambda options: pytest.fail("main must not run"))
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
