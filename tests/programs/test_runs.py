"""The folder of a run: nothing is lost, nothing is overwritten, mistakes are named."""

import io
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import ROOT, strict
from rich.console import Console

from examples.common import progress
from examples.common.runs import Recording, Run, RunError

SETTINGS = {"depth": 3, "lr": (1e-3, 3e-3)}


def state(value):
    return {"w": jnp.full((2, 3), value), "count": jnp.asarray(int(value))}


def template(step):
    return jax.eval_shape(lambda: state(0.0))


def recorded(path, steps=(1, 2)):
    """A run that was killed after these steps."""
    with Recording(path, SETTINGS, resume=False) as run:
        for step in steps:
            run.append({"step": step, "loss": 1.0 / step})
            run.save(step, state(float(step)))
    return Run(path)


def python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_run_goes_on_from_its_newest_checkpoint(tmp_path):
    recorded(tmp_path)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0.1}\n{"step": 4, "lo')
    with Recording(tmp_path, SETTINGS, resume=True) as run:
        step, restored = run.resume(template)
        assert step == 2
        jax.tree.map(np.testing.assert_array_equal, restored, state(2.0))
        assert restored["w"].dtype == np.float32
        assert [entry["step"] for entry in run.history()] == [1, 2]
        run.save(3, state(3.0))
    assert run.restore(template)[0] == 3


KILLED = """
import itertools, os, signal, sys, threading
import numpy as np
from pathlib import Path
from examples.common.runs import Recording

with Recording(Path(sys.argv[1]), {}, resume=False) as run:
    for step in itertools.count():
        if step == 2:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
        run.save(step, {"w": np.full((3000, 3000), step, np.float32)})
"""


def test_killed_while_a_checkpoint_was_written(tmp_path):
    """The newest complete one, whichever it is, holds what was saved."""
    result = python(KILLED, tmp_path)
    assert result.returncode == -signal.SIGKILL, result.stderr
    shapes = {"w": jax.ShapeDtypeStruct((3000, 3000), np.float32)}
    with Recording(tmp_path, {}, resume=True) as run:
        step, restored = run.resume(lambda step: shapes)
        assert (restored["w"] == step).all()
        run.save(step + 1, {"w": np.full((3000, 3000), 7.0, np.float32)})
    assert (run.restore(lambda step: shapes)[1]["w"] == 7).all()


def damage(checkpoint):
    """Leaves its files as they are named, and no content."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    recorded(tmp_path)
    damage(tmp_path / "checkpoints" / "2")
    with Recording(tmp_path, SETTINGS, resume=True) as run:
        step, restored = run.resume(template)
        assert step == 1
        jax.tree.map(np.testing.assert_array_equal, restored, state(1.0))
        assert [entry["step"] for entry in run.history()] == [1]
        run.save(2, state(2.0))
    assert run.restore(template)[0] == 2
    for step in (1, 2):
        damage(tmp_path / "checkpoints" / str(step))
    with pytest.raises(RunError, match=r"no checkpoint of .* can be read"):
        run.restore(template)


def test_two_processes_in_one_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from examples.common.runs import Recording\n"
        "Recording(Path(sys.argv[1]), {}, resume=True)"
    )
    with Recording(tmp_path, {}, resume=False):
        result = python(code, tmp_path)
        assert f"{tmp_path} is in use by another process" in result.stderr
    with Recording(tmp_path, {}, resume=True):
        pass  # it is free again


def test_runs_side_by_side_keep_their_checkpoints_apart(tmp_path):
    def make(name):
        state = {"name": np.full(100, name), "more": [np.zeros(3)] * 20}
        with Recording(tmp_path / str(name), {}, resume=False) as run:
            for step in range(4):
                run.save(step, state)
        return run.restore(lambda step: state)

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(make, range(4)))
    for name, (step, state) in enumerate(found):
        assert step == 3
        np.testing.assert_array_equal(state["name"], name)


def test_records_are_strict_json(tmp_path):
    results = {"loss": np.array([np.nan, np.inf, 1.0]), "number": np.float32(0.5)}
    with Recording(tmp_path, SETTINGS, resume=False) as run:
        run.append({"step": 1, "loss": jnp.asarray([1.0, jnp.nan])})
        run.finish(lambda: results | {"path": tmp_path})
    metrics = strict(tmp_path / "metrics.json")
    assert metrics["loss"] == [None, None, 1.0]
    assert metrics["number"] == 0.5
    assert metrics["settings"] == {"depth": 3, "lr": [1e-3, 3e-3]}
    assert metrics["versions"]["jax"] == jax.__version__
    assert metrics["device"]
    assert strict(tmp_path / "history.jsonl")["loss"] == [1.0, None]
    assert run.finished


def test_a_run_is_neither_overwritten_nor_continued_with_other_settings(tmp_path):
    recorded(tmp_path)
    with pytest.raises(RunError, match="add --resume"):
        Recording(tmp_path, SETTINGS, resume=False)
    for changes, message in (
        ({"depth": 4}, "depth was 3 and is 4 now"),
        ({"width": 8}, "width was None and is 8 now"),
    ):
        with pytest.raises(RunError, match=f"--resume needs.*{message}"):
            Recording(tmp_path, SETTINGS | changes, resume=True)


def test_folders_that_are_no_run(tmp_path):
    assert Run(tmp_path).restore(template) is None
    assert list(Run(tmp_path).history()) == []
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind
    with pytest.raises(RunError, match=r"is not a run: no settings\.json"):
        _ = Run(tmp_path).settings
    with pytest.raises(RunError, match="is not a finished run"):
        _ = recorded(tmp_path).metrics
    (tmp_path / "settings.json").write_bytes(b"{")
    with pytest.raises(RunError, match=r"cannot read .*settings\.json: "):
        Recording(tmp_path, SETTINGS, resume=True)


def test_progress_is_of_the_time_not_of_the_steps():
    console = Console(file=io.StringIO())
    bars = progress.Bars(console)
    with progress.Steps(console, "run", 20, 5, bars) as steps:
        (task,) = bars.tasks
        assert task.percentage == 25
        # The last ten steps take three times as long.
        steps.weigh(lambda n: n + 2 * max(n - 10, 0))
        assert task.percentage == 12.5
        steps.show(10, "")
        assert task.percentage == 25
        steps.show(11, "")
        steps.show(20, "error 1e-3")
        assert task.percentage == 100
    lines = console.file.getvalue().splitlines()
    expected = ["run 10/20", "run 11/20", "run 20/20"]
    assert [line.split(",")[0] for line in lines] == expected
    assert lines[2].endswith("error 1e-3")
