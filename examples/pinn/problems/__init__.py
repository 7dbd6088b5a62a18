"""The problems, by name."""

from examples.pinn.problems import burgers, heat, helmholtz, poisson
from examples.pinn.problems.problem import Condition, Problem

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        poisson.PROBLEM,
        poisson.PROBLEM_1D,
        helmholtz.PROBLEM,
        burgers.PROBLEM,
        heat.PROBLEM,
    )
}

__all__ = ["PROBLEMS", "Condition", "Problem"]
