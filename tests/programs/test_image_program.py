"""python -m examples.image_classification: runs, kills, meshes, processes, mistakes."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from program import KILLED, ROOT, killed, strict
from tensorboardX.proto.event_pb2 import Event

from examples.common import comparison
from examples.common.runs import Recording, Run, RunError
from examples.image_classification import __main__ as program
from examples.image_classification import figures, run, scores, studies
from examples.image_classification import train as training
from examples.image_classification.config import PLACE, Config
from examples.image_classification.mesh import AXES, Layout
from examples.image_classification.models import efficientnet, resnet
from examples.image_classification.scores import JUDGE
from examples.image_classification.watch import DivergedError

QUICK_COMPILATION = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
TINY = """
from examples.image_classification.models import resnet
resnet.MODELS["resnet18"] = (1, 1)
"""

pytestmark = pytest.mark.usefixtures("quick_compilation", "tiny")


@pytest.fixture(scope="module")
def tiny():
    """The smallest networks have a block or two, which compile in less time."""
    stage = efficientnet.Stage(True, depth=1, stride=1, expansion=1, width=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.MODELS, "resnet18", (1, 1))
        patch.setitem(efficientnet.MODELS, "efficientnetv2-b0", (24, (stage,)))
        yield
    training.functions_of.cache_clear()


# Five steps in an epoch.
SMALL = ["--model", "resnet18", "--width-multiplier", "0.125", "--batch-size", "256"]
SMALL += ["--log-every", "2"]
ADAM = ["--optimizer", "adam", "--scale-control", "stablegrad", "--lr", "3e-3"]


def main(*arguments):
    return program.main([str(argument) for argument in arguments])


# --- A run from beginning to end ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_compilation, tiny):
    path = tmp_path_factory.mktemp("runs") / "adam"
    assert main("train", *SMALL, *ADAM, "--epochs", 2, "--out", path) == 0
    return path


@pytest.mark.smoke
def test_metrics_hold_settings_results_and_where_they_are_from(finished):
    metrics = strict(finished / "metrics.json")
    assert set(metrics["settings"]) == set(Config.__dataclass_fields__) - set(PLACE)
    assert metrics["settings"] == strict(finished / "settings.json")
    curves = metrics["curves"]
    assert curves["epoch"] == [1, 2]
    assert metrics["test_accuracy"] == curves["test_accuracy"][-1]
    assert 0 < metrics["test_accuracy"] <= 1
    np.testing.assert_allclose(metrics["test_accuracy"] * 360 % 1, 0, atol=1e-9)
    assert metrics["stopped_at_step"] == -1
    for key in ("step_seconds", "images_per_second", "compile_seconds"):
        assert metrics[key] > 0
    assert metrics["mesh"] == {"data": 8, "fsdp": 1}
    assert metrics["data"]["classes"] == 10


def test_history_holds_a_line_for_each_stretch_and_what_epochs_gave(finished):
    history = list(Run(finished).history())
    assert [entry["step"] for entry in history] == [2, 4, 5, 6, 8, 10]
    assert [entry.get("epoch") for entry in history] == [None, None, 1, None, None, 2]
    for entry in history:
        assert np.isfinite(entry["loss"])
        assert min(entry["layer_scales"].values()) > 0
    assert "classifier" in history[0]["layer_scales"]


def test_event_files_hold_the_curves(finished):
    (path,) = (finished / "events").iterdir()
    data, found = path.read_bytes(), {}
    while data:  # length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
        data = data[16 + length :]
    for entry in Run(finished).history():
        for tag in ("loss", "test_accuracy"):
            if tag in entry:
                assert np.isclose(found[tag, entry["step"]], entry[tag])


def test_resuming_a_finished_run_changes_nothing(finished, capsys):
    before = {path: path.read_bytes() for path in finished.glob("*.json*")}
    arguments = [*SMALL, *ADAM, "--epochs", 2, "--out", finished]
    assert main("train", *arguments, "--resume") == 0
    assert "finished already: nothing to do" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in finished.glob("*.json*")}


def test_plot_draws_curves_and_layer_scales(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    assert main("plot", "--run", run) == 0
    for name in ("curves.png", "layer_scales.png"):
        assert (run / name).stat().st_size > 5000


def test_layers_are_drawn_as_an_image_passes_them():
    layers = ["blocks/10/branch/0/conv", "classifier", "blocks/9/shortcut/conv"]
    layers += ["stem/0/conv", "blocks/9/branch/2/conv"]
    assert figures.in_order(layers) == [
        "stem/0/conv",
        "blocks/9/branch/2/conv",
        "blocks/9/shortcut/conv",
        "blocks/10/branch/0/conv",
        "classifier",
    ]


# --- Killed and resumed ---


def test_killed_and_resumed_it_ends_with_the_same_numbers(
    tmp_path, capsys, monkeypatch
):
    """In the middle of an epoch, with everything that has a state or is random."""
    arguments = ["train", *SMALL, *ADAM, "--epochs", 2, "--checkpoint-every", 3]
    arguments += ["--augment", "--mixup", 0.4, "--ema-decay", 0.8, "--norm", "batch"]
    arguments += ["--stochastic-depth", 0.3, "--mesh", "data=4,fsdp=2", "--out"]
    never, run = tmp_path / "never", tmp_path / "killed"
    assert main(*arguments, never) == 0
    monkeypatch.setattr("program.KILLED", TINY + KILLED)
    killed("image_classification", 4, *arguments, run, **QUICK_COMPILATION)
    assert not Run(run).finished
    # Steps are looked at in pairs, so that is where checkpoints are.
    assert main(*arguments, run, "--resume") == 0
    assert "Resumed at step 4." in capsys.readouterr().out

    assert (run / "history.jsonl").read_text() == (never / "history.jsonl").read_text()
    once, resumed = strict(never / "metrics.json"), strict(run / "metrics.json")
    for key in ("step_seconds", "images_per_second", "compile_seconds"):
        del once[key], resumed[key]
    assert once == resumed


# --- A loss that is not finite ---


def test_loss_that_is_not_finite_ends_the_run(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = [*SMALL, "--optimizer", "sgd", "--scale-control", "none", "--lr", 1e9]
    # Where ReLU makes zero of NaN, the loss may stay finite.
    arguments += ["--model", "efficientnetv2-b0"]
    assert main("train", *arguments, "--warmup-epochs", 0, "--out", out) == 1
    err = capsys.readouterr().err
    assert re.match(r"error: the loss is (nan|inf) at step \d+; the gradient", err)
    assert "Try a lower --lr than 1e+09, or --scale-control stablegrad-pred" in err
    assert err.count("\n") == 1
    metrics = strict(out / "metrics.json")
    assert metrics["test_accuracy"] is None
    assert f"at step {metrics['stopped_at_step']};" in err
    # It compares as one that did not train.
    (record,) = JUDGE.read([out])
    np.testing.assert_array_equal(scores.final_accuracies(record), [[0.0]])
    assert main("plot", "--run", out) == 0


# --- Meshes and processes ---


def losses(options, steps, restore=None):
    """Losses of some steps, and the checkpoint behind them."""
    config = Config(
        out=Path("unused"),
        model="resnet18",
        width_multiplier=0.125,
        batch_size=64,
        norm="batch",
        optimizer="adam",
        lr=1e-3,
        log_every=1,
        **options,
    )
    running = training.Program(config)
    running.start()
    if restore is not None:
        running.restore(*restore(running.template))
    found = []
    for step, reports in running.run():
        found += [float(report.loss) for report in reports]
        if len(found) == steps:
            return found, step, running.state
    raise AssertionError


def test_every_mesh_gives_the_numbers_of_one_device(tmp_path, monkeypatch):
    """And goes on from the checkpoint of another."""
    with monkeypatch.context() as patch:
        mesh = jax.make_mesh(
            (1, 1), AXES, devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 2
        )
        patch.setattr(Layout, "of", lambda config: Layout(mesh))
        expected, _, _ = losses({}, 4)
    first, step, checkpoint = losses({"mesh": "data=4,fsdp=2"}, 2)
    np.testing.assert_allclose(first, expected[:2], rtol=1e-3)
    with Recording(tmp_path / "run", {}, resume=False) as run:
        run.save(step, checkpoint)
    second, _, _ = losses({"mesh": "data=2,fsdp=4"}, 2, Run(tmp_path / "run").restore)
    np.testing.assert_allclose(second, expected[2:], rtol=1e-3)


def test_runs_share_what_is_compiled_if_they_differ_in_rate_and_seed_alone(tmp_path):
    def numbers(out, *options):
        arguments = [*SMALL, *ADAM, "--epochs", 1, *options, "--out", tmp_path / out]
        assert main("train", *arguments) == 0
        return [entry["loss"] for entry in Run(tmp_path / out).history()]

    first = numbers("first")
    compiled = training.functions_of.cache_info().misses
    other = numbers("other", "--seed", 1, "--lr", "1e-2")
    assert training.functions_of.cache_info().misses == compiled
    assert strict(tmp_path / "other" / "metrics.json")["compile_seconds"] == 0
    training.functions_of.cache_clear()
    assert numbers("again", "--seed", 1, "--lr", "1e-2") == other != first


def test_two_processes_give_the_numbers_of_one(finished, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    out = tmp_path / "run"
    main = "import sys; from examples.image_classification.__main__ import main\n"
    command = [sys.executable, "-W", "error", "-c"]
    command += [TINY + main + "sys.exit(main(sys.argv[1:]))"]
    command += ["train", *SMALL, *ADAM, "--epochs", "1", "--out", str(out)]
    command += ["--mesh", "data=2,fsdp=2", "--coordinator", f"127.0.0.1:{port}"]
    command += ["--processes", "2"]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy")
    }
    flags = environment.pop("XLA_FLAGS", "").split()
    environment["XLA_FLAGS"] = " ".join(f for f in flags if "device_count" not in f)
    environment |= {
        "JAX_NUM_CPU_DEVICES": "2",
        "NPROC": "1",
        **QUICK_COMPILATION,
    }
    with contextlib.ExitStack() as stack:
        processes = []
        for i in range(2):
            log = stack.enter_context((tmp_path / f"{i}.log").open("w"))
            process = subprocess.Popen(
                [*command, "--process", str(i)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.kill)
            processes.append(process)
        for i, process in enumerate(processes):
            status = process.wait(300)
            assert status == 0, (tmp_path / f"{i}.log").read_text()
    metrics = strict(out / "metrics.json")
    assert metrics["processes"] == 2
    assert metrics["devices"] == 4
    # Both have a cosine of their own length: the first step is common.
    entry, expected = next(Run(out).history()), next(Run(finished).history())
    assert entry["step"] == expected["step"] == 2
    np.testing.assert_allclose(entry["loss"], expected["loss"], rtol=0.05)
    assert "test accuracy" in (tmp_path / "0.log").read_text()
    assert (tmp_path / "1.log").read_text().count("images/s") == 0
    assert len(list((out / "events").iterdir())) == 1


# --- Mistakes: one line that names the option, exit code 2, and nothing done ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "vgg16"], "--model"),
        (["--data", "mnist"], "--data"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0."),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0."),
        (["--batch-size", "12"], "--batch-size must be a multiple of 8"),
        (["--batch-size", "1600"], "--batch-size must be at most"),
        (["--accumulate", "3"], "--accumulate must be a divisor of 128, got 3."),
        (["--lr", "nan"], "--lr must be a positive, finite number"),
        (["--width-multiplier", "-1"], "--width-multiplier must be a positive"),
        (["--ema-decay", "1"], "--ema-decay must be at least 0 and below 1"),
        (["--optimizer", "adam", "--weight-decay", "1e-4"], "adamw decays weights"),
        (["--mesh", "data=2"], "--mesh data=2 needs 2 devices, there are 8."),
        (["--mesh", "rows=8"], "--mesh must be like data=4,fsdp=2"),
        (["--process", "0"], "--coordinator must be host:port"),
        (["--coordinator", "a:1"], "with --processes and --process, or auto, got a:1"),
        (["--data", "folder"], "folder needs --data-dir"),
        (["--image-size", "32"], "--image-size is for folder"),
    ],
)
def test_bad_options(tmp_path, capsys, options, message):
    out = tmp_path / "run"
    assert main("train", *options, "--out", out) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not out.exists()


@pytest.mark.parametrize("command", ["collect", "compare"])
def test_commands_that_need_runs(command, tmp_path, capsys):
    assert main(command, "--out", tmp_path / "x.json") == 2
    assert f"{command} needs the folders of one run or more" in capsys.readouterr().err


# --- Studies, and their runs compared ---


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by a made-up result; the names of what was trained."""
    names = []

    def train(config, console):
        config.check()
        with Recording(config.out, config.settings(), resume=config.resume) as made:
            if made.finished:
                return
            names.append(made.name)
            stops = config.lr > 0.05 and config.optimizer == "adam"
            made.finish(
                lambda: {
                    "test_accuracy": None if stops else 0.9 + config.seed / 100,
                    "images_per_second": None if stops else 100.0,
                }
            )
            if stops:
                raise DivergedError(3, np.nan, [], "Try less.")

    monkeypatch.setattr(run, "train", train)
    return names


@pytest.mark.parametrize("name", sorted(studies.STUDIES))
def test_every_method_of_a_study_has_the_same_rates_seeds_and_budget(name, tmp_path):
    runs = studies.runs(name, tmp_path, None, None, {})
    grid = {}
    for config in runs.values():
        config.check()
        settings = config.settings() | {"lr": None, "seed": None}
        grid.setdefault(str(settings), set()).add((config.lr, config.seed))
    assert len(set(map(frozenset, grid.values()))) == 1
    assert len({(c.epochs, c.batch_size) for c in runs.values()}) == 1


def test_study_goes_on_behind_a_run_that_diverged(trained, tmp_path, capsys):
    arguments = ["study", "digits", "--out", tmp_path, "--only", "adam-(none|agc)"]
    arguments += ["--lr", 1e-2, 1e-1, "--seeds", 0, 1]
    assert main(*arguments) == 0
    assert len(trained) == 3 * 2 * 2
    printed = capsys.readouterr().out
    assert "Stopped: the loss is nan at step 3" in printed
    assert "BatchNorm + adam" in printed
    assert main(*arguments) == 0
    assert len(trained) == 12


def test_further_seeds_at_the_best_rate_of_each_method(trained, tmp_path, capsys):
    arguments = ["study", "digits", "--out", tmp_path, "--only", "(sgd|adam)-agc"]
    arguments += ["--lr", 1e-2, 1e-1]
    best = [*arguments, "--at-best-rate", "--seeds", 0, 1]
    assert main(*best) == 2
    assert "--at-best-rate needs finished runs of each" in capsys.readouterr().err
    assert main(*arguments, "--seeds", 0) == 0
    # Adam stops at 0.1; of SGD both rates are as good, and the first is taken.
    trained.clear()
    assert main(*best) == 0
    assert sorted(trained) == [
        f"resnet50-none-{optimizer}-agc-lr0.01-seed1" for optimizer in ("adam", "sgd")
    ]
    others = [*arguments[:-2], 3e-1, "--at-best-rate"]
    assert main(*others) == 2
    assert "best at a rate of 0.01, which must be among" in capsys.readouterr().err
    # A run of another study in the same folder is not looked at.
    assert main(*arguments, "--seeds", 5, "--epochs", 2) == 0
    trained.clear()
    assert main(*best) == 0
    assert trained == []


def test_runs_that_differ_in_rate_and_seed_are_one_record(trained, tmp_path):
    runs = tmp_path / "runs"
    only = ["--only", "none-adam-agc", "--lr", 1e-2, 1e-1, "--seeds", 0, 2]
    assert main("study", "digits", "--out", runs, *only) == 0
    collected = tmp_path / "runs.json"
    assert main("collect", *runs.iterdir(), "--out", collected) == 0
    assert len(json.loads(collected.read_text())["runs"]) == 4
    (record,) = JUDGE.read([collected])
    assert record["settings"]["lr"] == [1e-2, 1e-1]
    assert record["test_accuracy"] == [[0.9, 0.92], [None, None]]
    np.testing.assert_array_equal(
        scores.final_accuracies(record), [[0.9, 0.92], [0, 0]]
    )
    assert scores.ACCURACY.best_rate(scores.final_accuracies(record)) == 0
    with pytest.raises(RunError, match=r"more than one run with a rate of 0\.0?1 and"):
        JUDGE.read([collected, *runs.iterdir()])
    # Further seeds of one rate; it is judged by the seed that both have.
    shutil.rmtree(next(runs.glob("*lr0.1-seed0")))
    (record,) = JUDGE.read(runs.iterdir())
    assert record["settings"]["seeds"] == [[2, 0], [2]]
    assert record["test_accuracy"] == [[0.92, 0.9], [None]]
    assert scores.ACCURACY.best_rate([np.array([0.9, 0.1]), np.array([0.8])]) == 0
    shutil.rmtree(next(runs.glob("*lr0.01-seed2")))
    with pytest.raises(RunError, match=r"there is none among 0\.01, 0\.1\."):
        JUDGE.read(runs.iterdir())


@pytest.mark.parametrize("model", ["resnet50", "resnet(18|50)"])
def test_figure_has_a_row_for_each_method(trained, tmp_path, monkeypatch, model):
    drawn = []
    monkeypatch.setattr(comparison.plt, "close", drawn.append)
    runs = tmp_path / "runs"
    only = ["--only", model + "-(batch|none)-adam-(none|agc)"]
    assert main("study", "depth", "--out", runs, *only, "--seeds", 0, 1) == 0
    figure_path = tmp_path / "figure.png"
    assert main("compare", *runs.iterdir(), "--out", figure_path) == 0
    (figure,) = drawn
    above, below = figure.axes
    assert len(below.get_yticklabels()) == 3
    assert above.get_ylim()[1] <= 1.1
    ticks = {text.get_text() for text in below.get_xticklabels()}
    several = {"resnet18", "resnet50"}
    assert ticks == (
        several if "18" in model else {f"{rate:g}" for rate in studies.RATES}
    )
    assert figure_path.stat().st_size > 2000
    monkeypatch.undo()
    comparison.plt.close(figure)
