"""Programs of the examples as a user runs them: killed, and what they write."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax

ROOT = Path(__file__).parents[2]

KILLED = """
import importlib, os, signal, sys
from examples.common.runs import Recording

main = importlib.import_module(f"examples.{sys.argv[1]}.__main__").main
original = Recording.save

def save(run, step, state):
    original(run, step, state)
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

Recording.save = save
sys.exit(main(sys.argv[3:]))
"""


def killed(example, step, *arguments, **environment):
    """A process that ends itself by SIGKILL at a checkpoint; what it printed before."""
    compiled_once = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    result = subprocess.run(
        [sys.executable, "-c", KILLED, example, str(step), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | compiled_once | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    return result.stdout


def strict(path):
    """JSON without the constants that JSON does not have."""

    def no_constants(name):
        raise AssertionError(f"{name} in {path}")

    return json.loads(path.read_text(), parse_constant=no_constants)
