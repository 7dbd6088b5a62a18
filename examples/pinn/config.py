"""The options of a training run, and the errors for bad ones."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from examples.common.command_line import checked_settings, require
from examples.common.optimizers import ScaleControl
from examples.pinn.problems import PROBLEMS, find, is_own, own
from examples.pinn.problems.problem import Problem

Optimizer = Literal["sgd", "adam", "lion", "muon"]
Initialization = Literal["glorot", "critical", "variance-preserving"]
Schedule = Literal["cosine", "exponential", "constant"]
WEIGHT = 100.0
OF_OLDER_RUNS = {
    "terms": "weighted",
    "initialization": "glorot",
    "units": "none",
    "gauss_newton_steps": 0,
}
"""Settings of runs that were made before there was a choice."""
SOURCE = "problem_sha256"
"""The setting that tells a file of the user's own, and its data, from others."""


_PROBLEM = (
    f"The problem to solve: {', '.join(PROBLEMS)}; or a file of your own that defines "
    "PROBLEM, such as my_equation.py."
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a deep physics-informed network: all rates and seeds in one program."""

    out: Path
    """Folder for settings, curves, checkpoints and results."""
    problem: Annotated[str, tyro.conf.arg(help=_PROBLEM)] = "poisson"
    depth: int = 5
    """Hidden layers; there are no residual connections."""
    width: int = 50
    """Units of each hidden layer."""
    activation: Literal["tanh", "sin", "gelu", "silu", "softplus"] = "tanh"
    """Activation of the hidden layers; any smooth one will do."""
    initialization: Initialization = "critical"
    """Of the weights; "critical" keeps the scale of derivatives over depth."""
    units: Literal["automatic", "none"] = "automatic"
    """Of the network's output: the problem's scales, or those of prescribed values."""
    optimizer: Optimizer = "muon"
    """The base optimizer."""
    scale_control: ScaleControl = "none"
    """What comes before it; -prediction: with the reference of the paper."""
    order: Literal["before", "after"] = "before"
    """Whether that comes before the base optimizer or after it, on its updates."""
    group_by: Literal["layer", "leaf", "tree"] = "layer"
    """What shares a gain, for StableGrad."""
    statistic: Literal["std", "rms"] = "std"
    """The scale of a layer, for StableGrad."""
    lr: tuple[float, ...] = (5e-3,)
    """Learning rates, trained side by side."""
    schedule: Schedule = "cosine"
    """To zero by a cosine, times 0.9 every 1,000 steps, or constant."""
    steps: int = 3000
    """Steps of the base optimizer."""
    gauss_newton_steps: int = 300
    """Steps of Gauss-Newton after them: slower by far, and to more digits."""
    lbfgs_steps: int = 0
    """Steps of L-BFGS after these, on fixed points."""
    seeds: int = 3
    """Initial weights and sequences of points; the same for every method."""
    interior_points: int = 256
    """Collocation points inside the domain."""
    condition_points: int = 64
    """Points for each boundary or initial condition."""
    lbfgs_points: int = 4096
    """Collocation points inside the domain for L-BFGS."""
    points: Literal["adaptive", "resampled", "fixed"] = "adaptive"
    """Anew at each step, and for Gauss-Newton by the residual; uniform; or the same."""
    terms: Literal["balanced", "weighted"] = "balanced"
    """How terms become one gradient: by sg.balance_terms, or by fixed weights."""
    condition_weight: float = WEIGHT
    """Of each condition's mean square beside the residual's; for weighted terms."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters, points and derivatives."""
    matmul_precision: Literal["highest", "high", "default"] = "highest"
    """Of matrix products; less than "highest" spoils PINNs on a GPU (TF32)."""
    chunk: int = 50
    """Steps on the device between two reports of the error."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue from the newest checkpoint in `out`, if there is one."""

    def check(self) -> None:
        """Raises RunError, with the name of the option, if a value makes no sense."""
        self.find_problem()
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, int):
                least = 0 if name.endswith("steps") or name == "resume" else 1
                require(self, name, value >= least, f"at least {least}")
        require(self, "steps", self.all_steps > 0, "at least 1")
        rates = self.lr and all(0 < rate < math.inf for rate in self.lr)
        require(self, "lr", rates, "one positive, finite number or more")
        require(self, "lr", len(set(self.lr)) == len(self.lr), "different numbers")
        weight = 0 < self.condition_weight < math.inf
        require(self, "condition_weight", weight, "a positive, finite number")
        if self.terms == "balanced":
            unused = self.condition_weight == WEIGHT
            require(self, "condition_weight", unused, "left out, or --terms weighted")
            has_loss = self.scale_control != "stablegrad-prediction"
            other = "another unless --terms weighted: its reference is that of one loss"
            require(self, "scale_control", has_loss, other)

    @property
    def all_steps(self) -> int:
        """Those of all optimizers."""
        return self.steps + self.gauss_newton_steps + self.lbfgs_steps

    def unused(self) -> list[str]:
        """Options that were set and have no effect, and what they need."""
        has_stablegrad = self.scale_control.startswith("stablegrad")
        needs = {
            "group_by": ("--scale-control stablegrad", has_stablegrad),
            "statistic": ("--scale-control stablegrad", has_stablegrad),
            "order": ("--scale-control", self.scale_control != "none"),
            "lbfgs_points": ("--lbfgs-steps", self.lbfgs_steps > 0),
            "lr": ("--steps", self.steps > 0),
            "schedule": ("--steps", self.steps > 0),
        }
        return [
            f"--{name.replace('_', '-')} without {other}"
            for name, (other, is_used) in needs.items()
            if not is_used and getattr(self, name) != getattr(Config, name)
        ]

    def settings(self) -> dict[str, Any]:
        """What determines the result: every option but `out` and `resume`."""
        values = dataclasses.asdict(self)
        del values["out"], values["resume"]
        if is_own(self.problem):
            path = Path(self.problem).absolute()
            values |= {"problem": str(path), SOURCE: own.fingerprint(path)}
        return values

    def find_problem(self) -> Problem:
        """The problem, from the copy of its file in `out` if there is one."""
        return find(self.problem, self.out)

    @classmethod
    def of(cls, out: Path, settings: Mapping[str, Any]) -> "Config":
        """The configuration of the run in a folder, from its settings."""
        values = {**OF_OLDER_RUNS, **settings}
        values.pop(SOURCE, None)
        if is_own(values.get("problem", "")):
            find(values["problem"], out)  # what is wrong there is not in the settings
        return checked_settings(cls, out, values | {"lr": tuple(values.get("lr", ()))})
