"""The folder of a run: its settings, curves, checkpoints and results.

settings.json    every option; written first
history.jsonl    one line for each chunk of training
checkpoints/     orbax; a killed run resumes from the newest
metrics.json     settings and results; written last, so a run that has it is finished
"""

import json
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import stablegrad_optax as sg

# Orbax counts its operations by process: runs side by side must take turns.
_TURN = threading.Lock()


class RunError(Exception):
    """An error that the user can correct; its text is one line."""

    code = 2
    """The exit code of the program."""


class DivergedError(RunError):
    """Nothing that was trained has stayed finite."""

    code = 1


class Run:
    """A run's folder, opened for reading."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        return read_json(self.path / "settings.json", "a run")

    @property
    def metrics(self) -> dict[str, Any]:
        return read_json(self.path / "metrics.json", "a finished run")

    @property
    def finished(self) -> bool:
        return (self.path / "metrics.json").exists()

    def history(self) -> Iterator[dict[str, Any]]:
        """The lines of the history, oldest first."""
        path = self.path / "history.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return  # the last line of a killed run

    def restore(self, template: Callable[[int], Any]) -> tuple[int, Any] | None:
        """The step and state of the newest readable checkpoint; None without any.

        `template` maps a step to the structure of the state, in ShapeDtypeStructs. The
        state is of NumPy arrays, or of JAX arrays where those have a sharding.
        """
        if not (self.path / "checkpoints").is_dir():
            return None
        reason = None
        with _TURN, self._checkpoints() as manager:
            for step in sorted(manager.all_steps(), reverse=True):
                args = ocp.args.StandardRestore(template(step))
                try:
                    return step, manager.restore(step, args=args)
                except Exception as error:  # Orbax has no exception of its own
                    reason = error
        if reason is not None:
            raise RunError(f"no checkpoint of {self.path} can be read: {reason}")
        return None

    def _checkpoints(self) -> ocp.CheckpointManager:
        # Not in the background: the next step may write to the buffers of this one.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False
        )
        path = (self.path / "checkpoints").absolute()
        return ocp.CheckpointManager(path, options=options)


class Recording(Run):
    """A run's folder, opened for the run itself. Use it as a context manager.

    Where several processes make a run, each of them opens it and makes the same calls.
    All write the checkpoints; the first writes the other files.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool):
        super().__init__(path)
        self._settings = json.loads(_dumps(dict(settings)))
        # Held by the process, so that it is free again however the process ends.
        self._lock = filelock.FileLock(path / ".lock")
        on_first_process(lambda: self._begin(resume))

    def _begin(self, resume: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "settings.json"
        if file.exists() and not resume:
            raise RunError(
                f"--out {self.path} holds a run already: add --resume to continue it, "
                "or choose another folder."
            )
        before = self.settings if file.exists() else self._settings
        for name in sorted(before.keys() | self._settings.keys()):
            if before.get(name) != self._settings.get(name):
                raise RunError(
                    f"--resume needs the settings of the run: {name} was "
                    f"{before.get(name)!r} and is {self._settings.get(name)!r} now."
                )
        try:
            self._lock.acquire(blocking=False)
        except filelock.Timeout:
            raise RunError(f"--out {self.path} is in use by another process.") from None
        if not file.exists():
            _write(file, _dumps(self._settings, indent=1))

    def __enter__(self) -> "Recording":
        self._manager = self._checkpoints()
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()
        self._lock.release()

    def resume(self, template: Callable[[int], Any]) -> tuple[int, Any] | None:
        """The newest readable checkpoint; drops what was recorded after it."""
        found = self.restore(template)
        last = -1 if found is None else found[0]
        for step in self._manager.all_steps():
            if step > last:  # damaged
                self._manager.delete(step)
        kept = [_dumps(entry) for entry in self.history() if entry["step"] <= last]
        lines = "".join(line + "\n" for line in kept)
        on_first_process(lambda: _write(self.path / "history.jsonl", lines))
        return found

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds a line to the history."""
        if jax.process_index() == 0:
            with (self.path / "history.jsonl").open("a") as file:
                file.write(_dumps(entry) + "\n")

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint."""
        if jax.process_count() == 1:
            state = jax.tree.map(np.asarray, state)
        with _TURN:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def finish(self, results: Callable[[], Mapping[str, Any]]) -> None:
        """Writes metrics.json: the settings, where the run was made, its results.

        `results` is called by the process that writes it.
        """
        made = {
            "settings": self._settings,
            "versions": {
                "python": platform.python_version(),
                **{
                    package.__name__: package.__version__
                    for package in (jax, optax, sg)
                },
            },
            "platform": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
        }

        def write():
            text = _dumps(made | dict(results()), indent=1)
            _write(self.path / "metrics.json", text)

        on_first_process(write)


def on_first_process(do: Callable[[], None]) -> None:
    """Does something on the first process; the others wait, and fail with it."""
    error = None
    if jax.process_index() == 0:
        try:
            do()
        except (RunError, OSError) as raised:
            error = raised
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.int32(error is not None))
        if failed and error is None:
            raise RunError("the first process failed; its message says why.")
    if error is not None:
        raise error


def read_json(path: Path, what: str) -> dict[str, Any]:
    """An object from a file in the folder of `what`."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path.parent} is not {what}: no {path.name} in it.") from None
    except ValueError as error:
        raise RunError(f"cannot read {path}: {error}.") from None
    if not isinstance(record, dict):
        raise RunError(f"cannot read {path}: it must hold a JSON object.")
    return record


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _dumps(record: Any, indent: int | None = None) -> str:
    """JSON: arrays as lists, and what is not finite as null, for JSON has no NaN."""

    def plain(x):
        if isinstance(x, (float, np.ndarray, np.generic, jax.Array)):
            array = np.asarray(x).astype(object)
            array[~np.isfinite(x)] = None
            return array.tolist()
        return x

    record = jax.tree.map(plain, record)
    return json.dumps(record, allow_nan=False, indent=indent, default=str)
