"""Several processes, started as one starts them on several machines.

They run multiprocess_worker.py, which is also the recipe of the documentation.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

WORKER = Path(__file__).with_name("multiprocess_worker.py")
STEPS = 12
SAVED = 8  # the last checkpoint before
FAILED = 11  # the step at which a process fails
STOPPED = 3  # the worker's exit status
TIMEOUT = 150  # seconds for one run; a few are enough on an idle machine


def run(directory, processes, *failure):
    """Runs the worker in some processes, the first of which may be made to fail.

    Returns for each its exit status, what it reported and its messages.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-W", "error", str(WORKER), "--steps", str(STEPS)]
    command += ["--checkpoints", str(directory), "--processes", str(processes)]
    command += ["--coordinator", f"127.0.0.1:{port}", "--process"]
    started = [
        subprocess.Popen(
            [*command, str(i), *(failure if i == 0 else ())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for i in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT) for process in started]
    finally:
        for process in started:
            process.kill()  # does nothing to one that has ended
    ended = []
    for process, (out, messages) in zip(started, outputs, strict=True):
        # JAX prints lines of its own.
        reports = [json.loads(line) for line in out.splitlines() if line[:1] == "{"]
        assert reports, messages
        ended.append((process.returncode, reports, messages))
    return ended


def environment():
    # No proxy on the way to another process.
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    # Not the eight devices of this process.
    flags = kept.pop("XLA_FLAGS", "").split()
    return kept | {
        "XLA_FLAGS": " ".join(flag for flag in flags if "device_count" not in flag),
        "JAX_NUM_CPU_DEVICES": "1",
        "NPROC": "1",  # threads in XLA's pools: there are processes enough
        # Programs this small take longer to optimise than to run.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def values_of(reports):
    """One row for each step."""
    return np.array([list(report["values"].values()) for report in reports])


def test_two_processes_train_as_one_and_go_on_after_one_is_killed(tmp_path):
    ((status, (alone, *expected), messages),) = run(tmp_path / "one", 1)
    assert status == 0, messages
    assert alone == {"start": 0, "share_of_state": 1.0}
    expected = values_of(expected)
    assert (expected[-1] < expected[0]).all()

    # The one that is killed is the coordinator.
    killed, survivor = run(tmp_path / "two", 2, "--fail-at", str(FAILED))
    assert killed[0] == -signal.SIGKILL
    assert_ended_by_failure(survivor)
    for _, (started, *reports), _ in (killed, survivor):
        # With FSDP, a part of the state in each process, and a copy of its scalars.
        np.testing.assert_allclose(started["share_of_state"], 0.5, rtol=1e-2)
        np.testing.assert_allclose(values_of(reports), expected[:FAILED], rtol=1e-4)

    for status, (started, *resumed), messages in run(tmp_path / "two", 2):
        assert status == 0, messages
        assert started["start"] == SAVED
        np.testing.assert_allclose(values_of(resumed), expected[SAVED:], rtol=1e-4)
        # The same number of processes: the same to the last bit.
        before = survivor[1][1:]
        assert resumed[: FAILED - SAVED] == before[SAVED:]


def assert_ended_by_failure(process):
    """By the worker, or sooner by JAX's coordination service; with the reason."""
    status, _, messages = process
    by_service = "This most likely indicates that another task died"
    reasons = {
        STOPPED: "of 2 stopped, most likely because another is gone",
        -signal.SIGABRT: by_service,
        1: by_service,  # with JAX 0.8
    }
    assert status in reasons, messages
    assert reasons[status] in messages
