"""The comparison of steps of a system: all methods have the same gradient."""

import json

import pytest

from benchmarks import system_steps


@pytest.mark.usefixtures("quick_compilation")
def test_record(tmp_path, capsys):
    pytest.importorskip("jinns")
    out = tmp_path / "steps.json"
    options = system_steps.Options(depth=2, width=4, points=5, rounds=2, out=out)
    assert system_steps.main(options) == 0
    methods = json.loads(out.read_text())["methods"]
    assert list(methods) == ["ours", "nested jvp", "jinns"]
    for found in methods.values():
        assert len(found["seconds"]) == 2
        assert found["error"] < system_steps.TOLERANCE
    assert "Kovasznay flow" in capsys.readouterr().out
