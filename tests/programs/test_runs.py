"""The folder of a run: nothing is lost, nothing is overwritten, mistakes are named."""

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.common import runs
from examples.common.runs import Recording, Run, RunError

ROOT = Path(__file__).parents[2]
SETTINGS = {"depth": 3, "lr": (1e-3, 3e-3)}


def state(value):
    return {"w": jnp.full((2, 3), value), "count": jnp.asarray(int(value))}


def template(step):
    del step
    return jax.eval_shape(lambda: state(0.0))


def recorded(path, steps=(1, 2)):
    """A run that was killed after these steps."""
    with Recording(path, SETTINGS, resume=False) as run:
        for step in steps:
            run.append({"step": step, "loss": 1.0 / step})
            run.save(step, state(float(step)))
    return Run(path)


def test_checkpoint_comes_back_as_it_was(tmp_path):
    step, restored = recorded(tmp_path).restore(template)
    assert step == 2
    np.testing.assert_array_equal(restored["w"], np.full((2, 3), 2.0, np.float32))
    assert restored["w"].dtype == np.float32
    assert restored["count"] == 2


def test_checkpoint_is_of_when_it_was_saved(tmp_path):
    """Even if the next step writes to the same buffers."""
    advance = jax.jit(
        lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0
    )
    large = {"w": jnp.zeros((1000, 1000))}
    with Recording(tmp_path, SETTINGS, resume=False) as run:
        large = advance(large)
        run.save(1, large)
        for _ in range(5):
            large = advance(large)
    _, restored = run.restore(lambda _: jax.eval_shape(lambda: large))
    assert (restored["w"] == 1).all()


def test_history_ends_before_a_line_that_was_not_finished(tmp_path):
    run = recorded(tmp_path)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [entry["step"] for entry in run.history()] == [1, 2]


def test_resumed_run_drops_the_history_after_its_checkpoint(tmp_path):
    recorded(tmp_path)
    with Recording(tmp_path, SETTINGS, resume=True) as run:
        run.append({"step": 3, "loss": 0.1})
        run.append({"step": 4, "loss": 0.1})
        step, _ = run.resume(template)
    assert step == 2
    assert [entry["step"] for entry in run.history()] == [1, 2]


@pytest.mark.parametrize("lost", ["everything", "metadata"])
def test_checkpoint_that_was_being_written_is_not_taken(tmp_path, lost):
    recorded(tmp_path)
    checkpoints = tmp_path / "checkpoints"
    partial = checkpoints / "3.orbax-checkpoint-tmp-7"
    shutil.copytree(checkpoints / "2", partial)
    for path in list(partial.rglob("*")):
        if path.is_file() and (lost == "everything" or "META" in path.name.upper()):
            path.unlink()
    with Recording(tmp_path, SETTINGS, resume=True) as run:
        step, restored = run.resume(template)
        assert step == 2
        assert (restored["w"] == 2).all()
        run.save(3, state(3.0))
    assert run.restore(template)[0] == 3


def damage(checkpoint):
    """Leaves its files as they are named, and no content."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def test_damaged_checkpoint_is_replaced_by_the_one_before(tmp_path):
    recorded(tmp_path)
    damage(tmp_path / "checkpoints" / "2")
    with Recording(tmp_path, SETTINGS, resume=True) as run:
        step, restored = run.resume(template)
        assert run.damaged == [2]
        assert step == 1
        assert (restored["w"] == 1).all()
        assert [entry["step"] for entry in run.history()] == [1]
        run.save(2, state(2.0))
    assert run.restore(template)[0] == 2


def test_no_checkpoint_can_be_read(tmp_path):
    run = recorded(tmp_path)
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
        child = [sys.executable, "-c", code, str(tmp_path)]
        result = subprocess.run(child, cwd=ROOT, capture_output=True, text=True)
        assert f"{tmp_path} is in use by another process" in result.stderr
    with Recording(tmp_path, {}, resume=True):
        pass  # it is free again


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from examples.common.runs import Recording

with Recording(Path(sys.argv[1]), {}, resume=False) as run:
    run.save(1, {"w": np.full((2000, 2000), 1.0, np.float32)})
    run._manager.wait_until_finished()
    run.save(2, {"w": np.full((2000, 2000), 2.0, np.float32)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_a_checkpoint_was_written(tmp_path):
    """The newest complete one, whichever it is, holds what was saved."""
    child = [sys.executable, "-c", KILLED, str(tmp_path)]
    result = subprocess.run(child, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    with Recording(tmp_path, {}, resume=True) as run:
        shapes = {"w": jax.ShapeDtypeStruct((2000, 2000), np.float32)}
        step, restored = run.resume(lambda step: shapes)
        assert (restored["w"] == step).all()
        run.save(3, {"w": np.full((2000, 2000), 3.0, np.float32)})
    assert (run.restore(lambda step: shapes)[1]["w"] == 3).all()


def test_folder_without_checkpoint(tmp_path):
    assert Run(tmp_path).restore(template) is None
    assert list(Run(tmp_path).history()) == []
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind


def test_metrics_are_strict_json(tmp_path):
    with Recording(tmp_path, SETTINGS, resume=False) as run:
        run.append({"step": 1, "loss": jnp.asarray([1.0, jnp.nan])})
        run.finish(
            lambda: {
                "loss": np.array([np.nan, np.inf, 1.0]),
                "number": np.float32(0.5),
                "count": np.int64(3),
                "none": None,
                "path": tmp_path,
            }
        )

    def no_constants(name):
        raise AssertionError(name)

    text = (tmp_path / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=no_constants)
    assert metrics["loss"] == [None, None, 1.0]
    assert (metrics["number"], metrics["count"], metrics["none"]) == (0.5, 3, None)
    assert metrics["settings"] == {"depth": 3, "lr": [1e-3, 3e-3]}
    assert metrics["versions"]["jax"] == jax.__version__
    assert metrics["device"]
    line = (tmp_path / "history.jsonl").read_text()
    assert json.loads(line, parse_constant=no_constants)["loss"] == [1.0, None]
    assert run.finished


def test_a_run_is_not_overwritten(tmp_path):
    recorded(tmp_path)
    with pytest.raises(RunError, match="add --resume"):
        Recording(tmp_path, SETTINGS, resume=False)


def test_checkpoints_without_settings_are_not_taken_for_those_of_a_new_run(tmp_path):
    recorded(tmp_path)
    (tmp_path / "settings.json").unlink()
    for resume in (False, True):
        with pytest.raises(RunError, match=r"holds a run already|no settings\.json"):
            Recording(tmp_path, SETTINGS, resume=resume)


def test_resume_in_an_empty_folder_begins(tmp_path):
    with Recording(tmp_path / "new", SETTINGS, resume=True) as run:
        assert run.resume(template) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 4}, "depth was 3 and is 4 now"),
        ({"lr": (1e-3,)}, r"lr was \[0.001, 0.003\] and is \[0.001\] now"),
        ({"width": 8}, "width was None and is 8 now"),
    ],
)
def test_resume_needs_the_same_settings(tmp_path, changes, message):
    recorded(tmp_path)
    with pytest.raises(RunError, match="--resume needs.*" + message):
        Recording(tmp_path, SETTINGS | changes, resume=True)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_settings_that_cannot_be_read(tmp_path, text):
    (tmp_path / "settings.json").write_bytes(text)
    with pytest.raises(RunError, match=r"cannot read .*settings\.json: ") as error:
        Recording(tmp_path, SETTINGS, resume=True)
    assert "\n" not in str(error.value)


def test_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run: no settings\.json"):
        _ = Run(tmp_path).settings
    with pytest.raises(RunError, match="is not a finished run"):
        _ = recorded(tmp_path).metrics
    with pytest.raises(RunError, match="is not a run"):
        _ = Run(tmp_path / "settings.json").settings


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/run"])
def test_folder_that_cannot_be_written_to(tmp_path, name):
    (tmp_path / "file").write_text("something")
    with pytest.raises(RunError, match="--out must be a folder"):
        runs.check_writable(tmp_path / name, "--out")
    assert (tmp_path / "file").read_text() == "something"


def test_what_is_written_whole_leaves_nothing_partial(tmp_path):
    runs.write_json(tmp_path / "a.json", {"x": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_runs_side_by_side_keep_their_checkpoints_apart(tmp_path):
    def make(name):
        state = {"name": np.full(100, name), "more": [np.zeros(3)] * 20}
        with Recording(tmp_path / str(name), {}, resume=False) as run:
            for step in range(4):
                run.save(step, state)
            run.finish(dict)
        return Run(tmp_path / str(name)).restore(lambda step: state)

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(make, range(4)))
    for name, (step, state) in enumerate(found):
        assert step == 3
        np.testing.assert_array_equal(state["name"], name)
