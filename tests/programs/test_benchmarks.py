"""Benchmarks: what they time, compare, record and draw."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import pytest

from benchmarks import (
    common,
    image_steps,
    minimal_examples,
    overhead,
    pinn_derivatives,
    remove_batchnorm,
    term_steps,
    without_batchnorm,
)
from examples.image_classification import models

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALLEST = {"depth": 1, "width": 4, "points": 5}


@pytest.fixture(autouse=True)
def other_tests_keep_their_caches(monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


# --- What they share ---


def test_steps_are_timed_in_random_order_and_go_on_from_the_last_result(capsys):
    seen = []

    def step_of(name):
        def step(i):
            seen.append((name, i))
            return i + 1

        return lambda: ({"compile_seconds": 12.34}, common.repeated(step, 0))

    def missing():
        raise ImportError("no such package")

    methods = {name: step_of(name) for name in "abc"} | {"d": missing}
    found = common.compare(methods, 20)
    rounds = [seen[i : i + 3] for i in range(0, len(seen), 3)]
    assert all(sorted(x) == [(name, i) for name in "abc"] for i, x in enumerate(rounds))
    assert len({tuple(name for name, _ in x) for x in rounds[1:]}) > 1
    assert [len(x["seconds"]) for x in found.values()] == [20] * 3
    found = {"a": found["a"] | {"seconds": [2, 4, 30]}}
    found["b"] = found["a"] | {"seconds": [1, 2, 3]}
    common.show("times", found, compile_seconds=".1f")
    printed = capsys.readouterr().out
    for text in ("d is left out", "over a", "12.3", "2000.0", "0.50 (0.38-0.62)"):
        assert text in printed


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    rounds: int = 1
    depths: tuple[int, ...] = (1, 2)
    data_dir: Path | None = None


def test_record_keeps_five_digits_and_no_paths(tmp_path):
    options = Options(out=tmp_path / "record.json", data_dir=tmp_path)
    common.save(options, {"numbers": [123456.789, 1.23456789e-6]})
    written = json.loads(options.out.read_text())
    assert written["numbers"] == [123460.0, 1.2346e-06]
    assert written["settings"] == {"rounds": 1, "depths": [1, 2]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "error: rounds must be positive, got 0"),
        ({"depths": (4, -1)}, "error: depths must be positive, got -1"),
        ({"out": Path("missing/x.json")}, "error: out must be in an existing folder"),
    ],
)
def test_mistakes_are_one_line(options, message, monkeypatch):
    monkeypatch.setattr(common.tyro, "cli", lambda kind: kind(**options))
    with pytest.raises(SystemExit, match=message):
        common.run(Options, lambda options: pytest.fail("main must not run"))


# --- Each of them, small ---


def few(names, methods):
    return {name: methods[name] for name in names}


@pytest.mark.parametrize(
    ("benchmark", "options", "methods"),
    [
        (term_steps, SMALLEST, ["one loss", "balanced terms"]),
        (image_steps, {"model": "resnet18", "width_multiplier": 0.0625}, ["nothing"]),
        (overhead, {"leaves": 4, "updates": 2}, ["adam alone", overhead.BALANCED]),
        (
            pinn_derivatives,
            {**SMALLEST, "problem": "kovasznay"},
            ["ours", "nested jvp, scanned", "nested jvp"],
        ),
    ],
)
def test_every_method_is_recorded(benchmark, options, methods, tmp_path, monkeypatch):
    """Derivatives by any method are those of double precision, else main returns 1."""
    # Small networks, since compiling them is what takes the time.
    monkeypatch.setattr(image_steps, "CONTROLS", few(["nothing"], image_steps.CONTROLS))
    monkeypatch.setitem(models.RESNETS, "resnet18", (1,))
    both = ["adam alone", overhead.BALANCED]
    monkeypatch.setattr(overhead, "METHODS", few(both, overhead.METHODS))
    monkeypatch.setattr(overhead, "resnet50", lambda: overhead.dense(4))
    out = tmp_path / "steps.json"
    assert not benchmark.main(benchmark.Options(**options, rounds=2, out=out))
    found = json.loads(out.read_text())["methods"]
    assert list(found)[: len(methods)] == methods
    for numbers in found.values():
        assert len(numbers["seconds"]) == 2
        assert min(numbers["seconds"]) > 0 < numbers["compile_seconds"]


def test_overhead_is_of_a_resnet50():
    leaves = jax.tree.leaves(overhead.resnet50())
    assert (len(leaves), sum(leaf.size for leaf in leaves)) == (161, 25_557_032)


def test_wrong_derivatives_end_with_exit_code_1(monkeypatch, capsys):
    def right(params, points):
        return params["params"]["first"]["kernel"][0, 0] * points[:, 0]

    found = {
        "nested jvp": right,
        "inexact": lambda *inputs: 1.001 * right(*inputs),
        "gradient": lambda *inputs: jax.lax.stop_gradient(right(*inputs)),
        "nan": lambda *inputs: jnp.nan * right(*inputs),
    }
    monkeypatch.setattr(pinn_derivatives, "residuals_of", lambda config: found)
    options = pinn_derivatives.Options(**SMALLEST, rounds=1)
    assert pinn_derivatives.main(options) == 1
    message = "error: wrong derivatives: inexact, gradient, nan\n"
    assert capsys.readouterr().err == message


def test_scores_are_recorded_by_seed(tmp_path, monkeypatch, capsys):
    name = "new weights, StableGrad"
    one = few([name], remove_batchnorm.METHODS)
    monkeypatch.setattr(remove_batchnorm, "METHODS", one)
    out = tmp_path / "record.json"
    options = {"blocks": 1, "width": 4, "rates": (0.1, 0.3), "seeds": 2, "epochs": 1}
    remove_batchnorm.main(remove_batchnorm.Options(**options, out=out))
    runs = json.loads(out.read_text())["runs"]
    assert [(run["method"], run["lr"]) for run in runs] == [(name, 0.1), (name, 0.3)]
    for run in runs:
        assert len(set(run["test_accuracy"])) == 2
        assert all(0 <= accuracy <= 1 for accuracy in run["test_accuracy"])
    assert "test accuracy by rate" in capsys.readouterr().out

    monkeypatch.setattr(minimal_examples, "EXAMPLES", {"twice": lambda seed: 2 * seed})
    minimal_examples.main(minimal_examples.Options(seeds=3, out=out))
    assert json.loads(out.read_text())["results"] == {"twice": [0, 2, 4]}


@pytest.mark.parametrize("network", without_batchnorm.NETWORKS)
def test_every_method_is_drawn_over_all_its_rates(network):
    figure, ax = plt.subplots()
    without_batchnorm.panel(ax, without_batchnorm.NETWORKS[network])
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines) == [label for label, *_ in without_batchnorm.LINES.values()]
    for line in lines.values():
        assert list(line.get_xdata()) == [0.01, 0.03, 0.1, 0.3, 1.0]
        assert all(0 <= accuracy <= 1 for accuracy in line.get_ydata())
    plt.close(figure)
