"""Several processes, started as one starts them on several machines.

They run multiprocess_worker.py, which is also the recipe of the documentation.
"""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("multiprocess_worker.py")
STEPS = 12
SAVED = 8  # the last checkpoint before
FAILED = 9  # the step at which a process fails
STOPPED = 3  # the worker's exit status
TIMEOUT = 150  # seconds for one run; a few are enough on an idle machine

pytestmark = pytest.mark.compatible(
    "parallelism", "several processes (`jax.distributed`)"
)


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a process left behind."""

    status: int
    start: int
    share_of_state: float
    losses: dict[int, float]  # by step
    messages: str


def run(
    directory, processes, *, devices=1, layout="fsdp", failing=None, fail_with="SIGKILL"
):
    """Runs the worker in some processes, one of which may be made to fail."""
    arguments = ["--layout", layout, "--steps", STEPS, "--processes", processes]
    arguments += ["--coordinator", f"127.0.0.1:{free_port()}"]
    arguments += ["--heartbeat-timeout", 10, "--checkpoints", directory / "checkpoints"]
    failure = ["--fail-at", FAILED, "--fail-with", fail_with]
    outputs = [directory / f"process_{i}" for i in range(processes)]
    with contextlib.ExitStack() as stack:
        started = []
        for i, output in enumerate(outputs):
            own = ["--process", i, *(failure if i == failing else [])]
            process = worker(output, devices, arguments + own)
            started.append(stack.enter_context(process))
        deadline = time.monotonic() + TIMEOUT
        for i, process in enumerate(started):
            if i == failing and fail_with == "SIGSTOP":
                continue  # it never ends
            try:
                process.wait(deadline - time.monotonic())
            except subprocess.TimeoutExpired:
                messages = outputs[i].with_suffix(".err").read_text()
                pytest.fail(f"process {i} of {processes} did not end: {messages}")
    return [read(*ended) for ended in zip(outputs, started, strict=True)]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def worker(output, devices, arguments):
    """A process that is gone at the end, whatever has happened."""
    # No proxy on the way to another process.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy")
    }
    # Not the eight devices of this process.
    flags = environment.pop("XLA_FLAGS", "").split()
    environment["XLA_FLAGS"] = " ".join(f for f in flags if "device_count" not in f)
    environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    environment["NPROC"] = "1"  # threads in XLA's pools: there are processes enough
    # Programs this small take longer to optimise than to run.
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    command = [sys.executable, "-W", "error", WORKER, *arguments]
    with (
        open(output.with_suffix(".out"), "w") as out,
        open(output.with_suffix(".err"), "w") as err,
        subprocess.Popen(
            [str(word) for word in command], stdout=out, stderr=err, env=environment
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()  # does nothing to one that has ended


def read(output, process):
    reports = [
        json.loads(line)
        for line in output.with_suffix(".out").read_text().splitlines()
        if line.startswith("{")  # JAX prints lines of its own
    ]
    messages = output.with_suffix(".err").read_text()
    assert reports, messages
    first, *steps = reports
    losses = {report["step"]: report["loss"] for report in steps}
    return Ended(process.returncode, losses=losses, messages=messages, **first)


def losses_of(ended):
    """The losses that all processes report."""
    for process in ended:
        assert process.status == 0, process.messages
        assert process.losses == ended[0].losses
    return ended[0].losses


def assert_close(losses, expected, rtol):
    np.testing.assert_allclose(
        list(losses.values()), [expected[step] for step in losses], rtol=rtol
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Runs of which no process fails, each of them once."""

    @functools.cache
    def ended(processes, **options):
        return run(tmp_path_factory.mktemp("undisturbed"), processes, **options)

    return ended


@pytest.mark.parametrize(
    ("processes", "devices", "layout"),
    [
        (2, 2, "data-parallel"),
        (2, 1, "fsdp"),
    ],
)
def test_training_is_that_of_one_process(processes, devices, layout, undisturbed):
    expected = losses_of(undisturbed(1))
    assert list(expected) == list(range(STEPS))
    assert expected[STEPS - 1] < expected[0]
    ended = undisturbed(processes, devices=devices, layout=layout)
    assert_close(losses_of(ended), expected, rtol=1e-5)
    # A copy on each device; or, with FSDP, a part of the state in each process, and of
    # Adam's count a copy.
    share = devices if layout == "data-parallel" else 1 / processes
    for process in ended:
        np.testing.assert_allclose(process.share_of_state, share, rtol=1e-2)


def test_others_end_with_a_killed_process_and_go_on_when_started_again(
    undisturbed, tmp_path
):
    """The one that was killed is the coordinator."""
    killed, survivor = run(tmp_path, 2, failing=0)
    assert killed.status == -signal.SIGKILL
    assert_ended_by_failure(survivor)
    for process in (killed, survivor):
        assert list(process.losses) == list(range(FAILED))

    ended = run(tmp_path, 2)
    resumed = losses_of(ended)
    assert ended[0].start == SAVED
    assert list(resumed) == list(range(SAVED, STEPS))
    # The same number of processes: the same to the last bit.
    expected = losses_of(undisturbed(2, devices=1, layout="fsdp"))
    assert_close(resumed, expected, rtol=0)


def test_others_end_when_a_process_hangs(tmp_path):
    survivor, _ = run(tmp_path, 2, failing=1, fail_with="SIGSTOP")
    assert_ended_by_failure(survivor)


def assert_ended_by_failure(process):
    """By the worker, or sooner by JAX's coordination service; with the reason."""
    by_service = "This most likely indicates that another task died"
    reasons = {
        STOPPED: "of 2 stopped, most likely because another is gone",
        -signal.SIGABRT: by_service,
        1: by_service,  # with JAX 0.8
    }
    assert process.status in reasons, process.messages
    assert reasons[process.status] in process.messages
