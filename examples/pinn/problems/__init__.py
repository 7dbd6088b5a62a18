"""The problems, by name, and those in files of the user's own."""

from pathlib import Path

from examples.common.runs import RunError
from examples.pinn.problems import (
    advection,
    allen_cahn,
    burgers,
    burgers_inverse,
    heat,
    helmholtz,
    hot_plate,
    klein_gordon,
    kovasznay,
    l_shape,
    laplace,
    lotka_volterra,
    own,
    poisson,
    reaction_diffusion,
    wave,
)
from examples.pinn.problems.problem import Problem

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        poisson.PROBLEM,
        poisson.PROBLEM_1D,
        helmholtz.PROBLEM,
        burgers.PROBLEM,
        heat.PROBLEM,
        advection.PROBLEM,
        kovasznay.PROBLEM,
        burgers_inverse.PROBLEM,
        burgers_inverse.NOISY,
        l_shape.PROBLEM,
        laplace.PROBLEM,
        reaction_diffusion.PROBLEM,
        allen_cahn.PROBLEM,
        wave.PROBLEM,
        wave.WITH_VELOCITY,
        klein_gordon.PROBLEM,
        hot_plate.PROBLEM,
        lotka_volterra.PROBLEM,
    )
}


def is_own(name: str) -> bool:
    """Whether the name of a problem is that of a file."""
    return name.endswith(".py")


def find(name: str, run: Path) -> Problem:
    """A problem by its name, or from a file; `run` is the folder of the run.

    If the run has a copy of the file already, that is what counts.
    """
    if is_own(name):
        path, kept = Path(name), run / own.KEPT
        return own.load(path, own.source_of(kept if kept.exists() else path))
    if name not in PROBLEMS:
        raise RunError(
            f"--problem must be one of {', '.join(PROBLEMS)}, or a file that defines "
            f"PROBLEM, such as my_equation.py, got {name}."
        )
    return PROBLEMS[name]
