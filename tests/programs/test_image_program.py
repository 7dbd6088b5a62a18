"""python -m examples.image_classification: runs, kills, meshes, processes, mistakes."""

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from program import KILLED, ROOT, killed, strict

from examples.common.runs import Recording, Run
from examples.image_classification import __main__ as program
from examples.image_classification import models, run, studies, train
from examples.image_classification.config import PLACE, Config

QUICK_COMPILATION = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
TINY = """
from examples.image_classification import models
models.RESNETS["resnet18"] = (1,)
"""
SPEEDS = ("step_seconds", "images_per_second", "compile_seconds")

pytestmark = pytest.mark.usefixtures("quick_compilation", "tiny")


@pytest.fixture(scope="module")
def tiny():
    """The smallest networks have one block, which compiles in less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.RESNETS, "resnet18", (1,))
        smallest = (24, (True, 1, 1, 1, 24))
        patch.setitem(models.EFFICIENTNETS, "efficientnetv2-b0", smallest)
        yield
    train.shared_program.cache_clear()


# Five steps in an epoch, with everything that has a state or is random, and parameters
# that are large enough to be divided.
SMALL = ["--model", "resnet18", "--width-multiplier", "0.125", "--batch-size", "256"]
SMALL += ["--log-every", "2", "--checkpoint-every", "3", "--epochs", "1", "--augment"]
SMALL += ["--optimizer", "adam", "--scale-control", "stablegrad", "--lr", "3e-3"]
SMALL += ["--ema-decay", "0.8", "--norm", "batch", "--stochastic-depth", "0.3"]
ON = ["--mesh", "data=4,fsdp=2"]


def main(*arguments):
    return program.main([str(argument) for argument in arguments])


# --- A run from beginning to end ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_compilation, tiny):
    path = tmp_path_factory.mktemp("runs") / "adam"
    assert main("train", *SMALL, *ON, "--out", path) == 0
    return path


@pytest.mark.smoke
def test_what_a_run_leaves_behind(finished):
    metrics, history = strict(finished / "metrics.json"), list(Run(finished).history())
    assert set(metrics["settings"]) == set(Config.__dataclass_fields__) - set(PLACE)
    assert metrics["settings"] == strict(finished / "settings.json")
    assert min(metrics[key] for key in SPEEDS) > 0
    assert metrics["mesh"] == {"data": 4, "fsdp": 2}
    assert [entry["step"] for entry in history] == [2, 4, 5]
    assert [entry.get("epoch") for entry in history] == [None, None, 1]
    for entry in history:
        assert min(entry["layer_scales"].values()) > 0
    assert metrics["test_accuracy"] == history[-1]["test_accuracy"]
    np.testing.assert_allclose(metrics["test_accuracy"] * 360 % 1, 0, atol=1e-9)

    (events,) = (finished / "events").iterdir()
    for tag in (b"loss", b"train_accuracy", b"test_accuracy"):
        assert tag in events.read_bytes()


def test_a_finished_run_is_left_alone_and_drawn(finished, capsys):
    before = {path: path.read_bytes() for path in finished.glob("*.json*")}
    arguments = ["train", *SMALL, *ON, "--out", finished]
    assert main(*arguments) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main(*arguments, "--resume") == 0
    assert "finished already: nothing to do" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in finished.glob("*.json*")}
    assert main("plot", "--run", finished) == 0
    for name in ("curves.png", "layer_scales.png"):
        assert (finished / name).stat().st_size > 5000


def test_killed_and_resumed_it_ends_with_the_same_numbers(
    finished, tmp_path, capsys, monkeypatch
):
    """In the middle of an epoch; on another mesh the numbers are those up to rounding.

    Runs that differ in rate and seed share what is compiled.
    """
    out, other, seed = (tmp_path / name for name in ("killed", "other", "seed"))
    arguments = ["train", *SMALL, *ON, "--out"]
    monkeypatch.setattr("program.KILLED", TINY + KILLED)
    killed("image_classification", 4, *arguments, out, **QUICK_COMPILATION)
    assert not Run(out).finished
    shutil.copytree(out, other)
    assert main(*arguments, out, "--resume") == 0
    # Steps are looked at in pairs, so that is where checkpoints are.
    assert "Resumed at step 4." in capsys.readouterr().out
    assert list(Run(out).history()) == list(Run(finished).history())
    once, resumed = strict(finished / "metrics.json"), strict(out / "metrics.json")
    for key in SPEEDS:
        del once[key], resumed[key]
    assert once == resumed

    assert main(*arguments, seed, "--seed", 1, "--lr", 1e-2) == 0
    assert strict(seed / "metrics.json")["compile_seconds"] == 0
    losses = [[x["loss"] for x in Run(path).history()] for path in (seed, finished)]
    assert losses[0] != losses[1]

    assert main("train", *SMALL, "--mesh", "fsdp=8", "--out", other, "--resume") == 0
    again = [x["loss"] for x in Run(other).history()]
    np.testing.assert_allclose(again, losses[1], rtol=1e-3)


def test_loss_that_is_not_finite_ends_the_run(tmp_path, capsys):
    # Where ReLU makes zero of NaN, the loss may stay finite.
    arguments = [*SMALL, "--model", "efficientnetv2-b0", "--norm", "none"]
    arguments += ["--scale-control", "none", "--optimizer", "sgd"]
    arguments += ["--lr", 1e9, "--warmup-epochs", 0]
    assert main("train", *arguments, "--out", tmp_path) == 1
    err = capsys.readouterr().err
    metrics = strict(tmp_path / "metrics.json")
    assert err.startswith("error: the loss is ")
    assert f"at step {metrics['stopped_at_step']}; the gradient" in err
    assert "Try a lower --lr than 1e+09, or --scale-control stablegrad-pred" in err
    assert metrics["test_accuracy"] is None
    rows = studies.JUDGE.rows(studies.JUDGE.read([tmp_path]))
    assert rows["score"].tolist() == [0.0]
    assert main("plot", "--run", tmp_path) == 0


def test_two_processes_give_the_numbers_of_one(finished, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    out = tmp_path / "run"
    main = "import sys; from examples.image_classification.__main__ import main\n"
    command = [sys.executable, "-W", "error", "-c"]
    command += [TINY + main + "sys.exit(main(sys.argv[1:]))"]
    command += ["train", *SMALL, "--out", str(out), "--mesh", "data=2,fsdp=2"]
    command += ["--coordinator", f"127.0.0.1:{port}", "--processes", "2"]
    flags = os.environ.get("XLA_FLAGS", "").split()
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_proxy")}
    environment |= {
        "XLA_FLAGS": " ".join(flag for flag in flags if "device_count" not in flag),
        "JAX_NUM_CPU_DEVICES": "2",
        "NPROC": "1",
        **QUICK_COMPILATION,
    }
    logs = [tmp_path / f"{i}.log" for i in range(2)]
    with contextlib.ExitStack() as stack:
        processes = []
        for i, log in enumerate(logs):
            process = subprocess.Popen(
                [*command, "--process", str(i)],
                cwd=ROOT,
                env=environment,
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.kill)
            processes.append(process)
        for process, log in zip(processes, logs, strict=True):
            assert process.wait(300) == 0, log.read_text()
    metrics = strict(out / "metrics.json")
    assert (metrics["processes"], metrics["devices"]) == (2, 4)
    losses = [[x["loss"] for x in Run(path).history()] for path in (out, finished)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert [log.read_text().count("test accuracy") for log in logs] == [2, 0]
    assert len(list((out / "events").iterdir())) == 1


# --- Mistakes: one line that names the option, exit code 2, and nothing done ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--epochs 0", "--epochs must be at least 1, got 0."),
        ("--batch-size 12", "--batch-size must be a multiple of 8"),
        ("--batch-size 1600", "--batch-size must be at most"),
        ("--accumulate 3", "--accumulate must be a divisor of 128, got 3."),
        ("--lr nan", "--lr must be a positive, finite number"),
        ("--ema-decay 1", "--ema-decay must be at least 0 and below 1"),
        ("--optimizer adam --weight-decay 1e-4", "adamw decays weights"),
        ("--mesh data=2", "--mesh data=2 is not one of 8 devices."),
        ("--mesh rows=8", "--mesh must be like data=4,fsdp=2"),
        ("--coordinator a:1", "with --processes and --process, or auto, got a:1"),
        ("--process 0", "--coordinator must be host:port"),
        ("--data folder", "--data-dir must be a folder with train/<class>/"),
        ("--data folder --data-dir /none", "/none"),
        ("--image-size 32", "--image-size must be left out"),
    ],
)
def test_bad_options(tmp_path, capsys, options, message):
    out = tmp_path / "run"
    assert main("train", *options.split(), "--out", out) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not out.exists()


# --- Studies, and their runs compared ---


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by a made-up result; the names of what was trained."""
    names = []

    def train(config, console):
        with Recording(config.out, config.settings(), resume=config.resume) as made:
            if made.finished:
                return
            names.append(made.name)
            stops = config.lr > 0.05 and config.optimizer == "adam"
            accuracy = None if stops else 0.9 + config.seed / 100
            made.finish(lambda: {"test_accuracy": accuracy, "images_per_second": None})
            if stops:
                raise run.LossError("the loss is nan", 3, None)

    monkeypatch.setattr(run, "train", train)
    return names


def test_a_study_goes_on_and_takes_further_seeds_at_the_best_rates(
    trained, tmp_path, capsys
):
    runs, collected = tmp_path / "runs", tmp_path / "runs.json"
    arguments = ["study", "digits", "--out", runs, "--only", "(sgd|adam)-agc"]
    arguments += ["--lr", 1e-2, 1e-1]
    best = [*arguments, "--at-best-rate", "--seeds", 0, 1]
    assert main(*best) == 2
    message = "--at-best-rate needs finished runs of resnet50-none-sgd-agc"
    assert message in capsys.readouterr().err
    assert main(*arguments, "--seeds", 0) == 0
    assert "Stopped: the loss is nan" in capsys.readouterr().out
    assert len(trained) == 4
    # Not looked at: of another budget.
    assert main(*arguments, "--seeds", 5, "--epochs", 2) == 0
    # Adam stops at 0.1; of SGD both rates are as good, and the first is taken.
    trained.clear()
    for _ in range(2):
        assert main(*best) == 0
        names = [f"resnet50-none-{x}-agc-lr0.01-seed1" for x in ("adam", "sgd")]
        assert sorted(trained) == names
    assert main(*arguments[:-2], 3e-1, "--at-best-rate") == 2
    assert "best of their rates, 0.01, among those of --lr" in capsys.readouterr().err

    # Runs that differ in rate and seed are one method.
    assert main("collect", *runs.glob("*adam*seed[01]"), "--out", collected) == 0
    assert len(json.loads(collected.read_text())["runs"]) == 3
    assert main("compare", collected, "--out", tmp_path / "figure.png") == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    # One of its seeds is better than 0.9.
    expected = "agc + adam 0.01 0.9050 0.9000 - 0.9100 1/2 -"
    assert expected.split() in table


def test_committed_records_are_drawn_with_a_row_for_each_method(tmp_path):
    records = ROOT / "benchmarks" / "results" / "images_digits_cpu.json"
    assert main("compare", records, "--out", tmp_path / "figure.png") == 0
    assert (tmp_path / "figure.png").stat().st_size > 5000
    methods = studies.JUDGE.rows(studies.JUDGE.read([records]))["method"]
    controls = ["", "clip + ", "agc + ", "stablegrad + ", "stablegrad-prediction + "]
    names = itertools.product([*controls, "BatchNorm + "], ["adam", "sgd"])
    assert set(methods) == set(map("".join, names))
