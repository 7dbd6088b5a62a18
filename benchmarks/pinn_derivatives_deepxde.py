"""The same Laplacian and loss by DeepXDE on JAX, in a process of its own.

DeepXDE takes its backend from the environment when it is imported, and its kind of
automatic differentiation from a global setting. The process compiles one step, answers
"ready" with what it found, and then makes a timed step for each line that it is sent.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.pinn_derivatives_methods import (
    SCALE,
    Case,
    UnavailableError,
    layers,
    source,
)
from benchmarks.pinn_derivatives_timing import MATMUL_PRECISION, LocalStep, Step

MODES = ("forward", "reverse")


class RemoteStep:
    """A compiled step in another process."""

    def __init__(self, case: Case, mode: str):
        if importlib.util.find_spec("deepxde") is None:
            raise UnavailableError("DeepXDE is not installed")
        settings = json.dumps(dataclasses.asdict(case) | {"mode": mode})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.pinn_derivatives_deepxde", settings],
            cwd=Path(__file__).parents[1],
            env=os.environ
            | {
                "DDE_BACKEND": "jax",
                "JAX_DEFAULT_MATMUL_PRECISION": MATMUL_PRECISION,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        found = self._answer()
        self.laplacian = np.asarray(found["laplacian"], np.float32)
        self.compile_seconds = found["compile_seconds"]
        self.loss, self.gradient_norm = found["loss"], found["gradient_norm"]

    def __call__(self) -> float:
        """Makes a step; its seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UnavailableError(
                f"DeepXDE ended with exit code {self._process.wait()}"
            )
        return json.loads(line)


def methods() -> dict[str, Callable[[Case], Step]]:
    """Each of its ways to derivatives."""

    def method(mode):
        return lambda case: RemoteStep(case, mode)

    return {f"DeepXDE, {mode}": method(mode) for mode in MODES}


def step_of(case: Case, mode: str) -> Step:
    """The gradient of a model's training loss, in this process."""
    import deepxde as dde

    params, points = case.inputs()
    dde.config.set_default_autodiff(mode)

    def laplacian(x, u):
        u_xx, _ = dde.grad.hessian(u, x, i=0, j=0)
        u_yy, _ = dde.grad.hessian(u, x, i=1, j=1)
        return u_xx + u_yy

    def residual(x, u):
        return laplacian(x, u) - source(x)[:, None]

    data = dde.data.PDE(
        dde.geometry.Rectangle([-1, -1], [1, 1]),
        residual,
        [],
        num_domain=0,
        anchors=np.asarray(points),
    )
    sizes = [2, *case.depth * [case.width], 1]
    network = dde.nn.FNN(sizes, "tanh", "Glorot normal")
    network.apply_feature_transform(lambda x: SCALE * x)
    model = dde.Model(data, network)
    model.compile("adam", lr=1e-3)
    weights = {
        f"denses_{i}": {"kernel": kernel, "bias": bias}
        for i, (kernel, bias) in enumerate(layers(params))
    }
    inputs, targets, _ = data.train_next_batch()

    def loss(weights, points):
        losses = model.outputs_losses_train([weights, []], points, targets)[1]
        return jnp.sum(losses)

    def laplacian_at(weights, points):
        def u(x):
            return network.apply(weights, x)

        result = laplacian(points, (u(points), u))
        dde.grad.clear()
        return result[:, 0]

    assert len(inputs) == case.points
    # DeepXDE puts anchors first, in their order.
    return LocalStep(laplacian_at, loss, {"params": weights}, jnp.asarray(inputs))


def serve(settings: dict[str, Any]) -> None:
    """What the other process does."""
    # DeepXDE prints: its words are not to be among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    mode = settings.pop("mode")
    step = step_of(Case(**settings), mode)
    found = {
        "laplacian": step.laplacian.tolist(),
        "compile_seconds": step.compile_seconds,
        "loss": step.loss,
        "gradient_norm": step.gradient_norm,
    }
    print(json.dumps(found), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(step()), file=answers, flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
