"""The options of a training run, what is wrong with bad ones, and named presets."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from examples.common.optimizers import Base, ScaleControl
from examples.common.runs import RunError

ProblemName = Literal["poisson", "poisson1d", "helmholtz", "burgers", "heat"]
Initialization = Literal["glorot", "critical", "variance-preserving"]
Schedule = Literal["cosine", "exponential", "constant"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a deep physics-informed network: all rates and seeds in one program."""

    out: Path
    """Folder for settings, curves, checkpoints and results."""
    problem: ProblemName = "poisson"
    """The equation to solve."""
    depth: int = 16
    """Hidden layers; there are no residual connections."""
    width: int = 32
    """Units of each hidden layer."""
    activation: Literal["tanh", "sin", "gelu", "silu", "softplus"] = "tanh"
    """Activation of the hidden layers; any smooth one will do."""
    initialization: Initialization = "glorot"
    """Of the weights; "critical" keeps the size of derivatives with depth."""
    optimizer: Base = "adam"
    """The base optimizer."""
    scale_control: ScaleControl = "stablegrad"
    """What stands in front of it; -prediction: with the reference of the paper."""
    group_by: Literal["layer", "leaf", "tree"] = "layer"
    """What shares a gain, for StableGrad."""
    statistic: Literal["std", "rms"] = "std"
    """The scale of a layer, for StableGrad."""
    lr: tuple[float, ...] = (1e-3,)
    """Learning rates, trained side by side."""
    schedule: Schedule = "cosine"
    """To zero by a cosine, times 0.9 every 1,000 steps, or constant."""
    steps: int = 2000
    """Steps of the base optimizer."""
    lbfgs_steps: int = 0
    """Steps of L-BFGS behind them, on points that stay the same."""
    seeds: int = 3
    """Initial weights and sequences of points; the same for every method."""
    interior_points: int = 256
    """Collocation points inside the domain."""
    condition_points: int = 64
    """Points for each boundary or initial condition."""
    lbfgs_points: int = 4096
    """Collocation points inside the domain for L-BFGS."""
    points: Literal["resampled", "fixed"] = "resampled"
    """Whether points are drawn anew at each step."""
    condition_weight: float = 100.0
    """Weight of each condition's mean square beside that of the residual."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters, points and derivatives."""
    matmul_precision: Literal["highest", "high", "default"] = "highest"
    """Of matrix products; less than "highest" spoils PINNs on a GPU (TF32)."""
    chunk: int = 50
    """Steps on the device between two looks at the error."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on from the newest checkpoint in `out`."""

    def check(self) -> None:
        """Raises RunError, with the name of the option, if a value makes no sense."""
        for name in ("depth", "width", "seeds", "chunk", "checkpoint_every"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("interior_points", "condition_points", "lbfgs_points"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "lbfgs_steps"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        _require(self, "steps", self.steps + self.lbfgs_steps > 0, "at least 1")
        _require(self, "lr", self.lr and min(self.lr) > 0, "one positive rate or more")
        _require(self, "condition_weight", self.condition_weight > 0, "positive")

    def settings(self) -> dict[str, Any]:
        """What determines the result: every option but `out` and `resume`."""
        values = dataclasses.asdict(self)
        del values["out"], values["resume"]
        return values


def _require(config: Config, name: str, holds: Any, what: str) -> None:
    if not holds:
        option = "--" + name.replace("_", "-")
        raise RunError(f"{option} must be {what}, got {getattr(config, name)}.")


DEPTHS = (4, 8, 16, 32, 64, 128)
RATES = (3e-4, 1e-3, 3e-3)
METHODS: tuple[tuple[Base, ScaleControl], ...] = (
    ("adam", "none"),
    ("adam", "clip"),
    ("adam", "agc"),
    ("adam", "normalize"),
    ("adam", "stablegrad"),
    ("adam", "stablegrad-prediction"),
    ("lion", "none"),
    ("lion", "stablegrad"),
    ("muon", "none"),
    ("muon", "stablegrad"),
)


def depth_study(folder: Path, **changes: Any) -> dict[str, Config]:
    """Poisson at every depth by every method: the same rates, seeds and budget.

    A run for each, by name; `changes` holds for all of them.
    """
    runs = {}
    for depth in DEPTHS:
        for optimizer, control in METHODS:
            name = f"depth{depth}-{optimizer}-{control}"
            options = {"lr": RATES, "seeds": 5, **changes}
            runs[name] = Config(
                out=folder / name,
                depth=depth,
                optimizer=optimizer,
                scale_control=control,
                **options,
            )
    return runs
