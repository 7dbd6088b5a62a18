"""Problems of PINNacle: what is recorded beside the published errors."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.pinnacle import __main__ as benchmark
from benchmarks.pinnacle import figure
from examples.common.runs import Run
from examples.pinn.problems import kovasznay

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_record_beside_the_published_errors(tmp_path, monkeypatch, capsys):
    (tmp_path / "published.csv").write_text("problem,PINN,LBFGS\nPNd,3e-3,\n")
    # A problem that is quick to compile, by the name of another.
    monkeypatch.setitem(benchmark.CASES, "PNd", benchmark.Case("poisson1d", 4, 4))
    for method, settings in benchmark.SETTINGS.items():
        tiny = settings | {"steps": 3, "dtype": "float32", "width": 4, "depth": 1}
        if method == "ours":
            tiny["gauss_newton_steps"] = 2
        monkeypatch.setitem(benchmark.SETTINGS, method, tiny)
    options = benchmark.Options(
        tmp_path / "found.json",
        reference=tmp_path,
        runs=tmp_path / "runs",
        problems=("PNd",),
        seeds=2,
    )
    benchmark.main(options)
    runs = json.loads(options.out.read_text())["runs"]
    first, *others = runs
    assert (first["method"], first["errors"]) == ("PINN", [3e-3])
    assert [run["method"] for run in others] == ["ours", "control"]
    for entry in others:
        run = Run(tmp_path / "runs" / f"pnd-{entry['method']}")
        # With one field the error over all fields is that of the field.
        np.testing.assert_allclose(
            entry["errors"], run.metrics["relative_l2"][0], rtol=1e-4
        )
    # Thirty candidates for each of four points inside.
    ours = 8 * (3 + 2 * 2) + 30 * 4 * 2
    assert [run["evaluations"] for run in others] == [ours, 8 * 3]
    figure.draw(options.out, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()
    assert "best published" in capsys.readouterr().out
    # Finished runs are kept.
    benchmark.main(options)
    assert "nothing to do" in capsys.readouterr().out
    assert json.loads(options.out.read_text())["runs"] == runs


def test_error_of_several_fields_is_that_of_all_together():
    problem = kovasznay.PROBLEM
    points, solution = problem.reference()
    off = {"u": 0.1, "v": 0.0, "p": -0.2}
    errors = {
        name: [[abs(off[name]) * np.sqrt(len(points)) / np.linalg.norm(exact)]]
        for name, exact in solution.items()
    }

    run = SimpleNamespace(metrics={"errors": errors})
    config = SimpleNamespace(find_problem=lambda: problem)
    (found,) = benchmark.relative_errors(run, config)
    together = np.linalg.norm(np.concatenate([*solution.values()]))
    expected = np.sqrt(len(points) * (0.1**2 + 0.2**2)) / together
    np.testing.assert_allclose(found, expected)


def test_a_folder_without_the_table_is_an_error(tmp_path):
    options = benchmark.Options(reference=tmp_path, runs=tmp_path)
    with pytest.raises(SystemExit, match=r"reference must hold published\.csv"):
        benchmark.main(options)
