"""The problems, by name."""

from examples.pinn.problems import burgers, heat, helmholtz, poisson, poisson1d
from examples.pinn.problems.problem import Condition, Problem

PROBLEMS: dict[str, Problem] = {
    module.PROBLEM.name: module.PROBLEM
    for module in (poisson, poisson1d, helmholtz, burgers, heat)
}

__all__ = ["PROBLEMS", "Condition", "Problem"]
