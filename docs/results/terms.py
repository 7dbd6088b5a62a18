"""Tables of loss terms: fixed weights, balanced terms, and what others do."""

import numpy as np

from docs.results.records import Result, best, content, is_in
from docs.results.tables import (
    listed,
    median,
    number,
    seeds,
    table,
    trained,
    with_source,
)
from examples.pinn.demo import CASES, METHODS

FILES = {
    "Helmholtz 5 x 50": "loss_terms_cpu",
    "Burgers 5 x 40": "loss_terms_cpu",
    "Poisson 16 x 32": "loss_terms_gpu",
    "Poisson 64 x 32": "loss_terms_gpu",
}
"""The problems that were run with fixed weights."""
PEERS = ("gradient norms", "ConFIG", "annealing", "MultiAdam")
PROGRAM = "python -m benchmarks.loss_terms"
COMMAND = (
    f"`{PROGRAM}` and, on the CPU, "
    f'`{PROGRAM} --cases "Helmholtz 5 x 50" "Burgers 5 x 40" --seeds 3`'
)


def of_method(case: str, base: str, method: str) -> Result:
    """A method that has no weight, at its best rate."""
    return best(FILES[case], case=case, base=base, method=method)


def was_run(case: str, base: str, method: str) -> bool:
    """Whether a method was run on a problem."""
    return is_in(FILES[case], case=case, base=base, method=method)


def of_weight(case: str, base: str, weight: float) -> Result:
    """A fixed weight of the conditions, at its best rate."""
    return best(FILES[case], case=case, base=base, method="weight", weight=weight)


def best_weight(case: str, base: str) -> tuple[float, Result]:
    """The weight with the lowest median of those that were run."""
    weights = content(FILES[case])["settings"]["weights"]
    results = [(weight, of_weight(case, base, weight)) for weight in weights]
    return min(results, key=lambda pair: pair[1].median)


def cases(base: str) -> list[str]:
    """The problems that were run with fixed weights by a base optimizer."""
    return [case for case in FILES if was_run(case, base, "weight")]


def name_of(case: str) -> str:
    """A problem and its network in words."""
    problem, depth, _, width = case.split()
    return f"{problem}, {depth} layers of {width}"


def demo() -> str:
    """Errors of the demo by problem and method, and how many seeds trained."""
    cells = []
    for problem in CASES:
        results = [best("demo", name=f"{problem}, {method}") for method in METHODS]
        cells.append(
            [problem.capitalize(), *(f"{median(r)} ({trained(r)})" for r in results)]
        )
    networks = []
    for problem in CASES:
        s = best("demo", name=f"{problem}, {next(iter(METHODS))}").settings
        networks.append(
            f"{problem.capitalize()}: {s['depth']} layers of {s['width']}, "
            f"{s['interior_points']} + {s['condition_points']} points, {s['steps']:,} "
            f"steps of Muon at {listed(s['lr'])}, {s['seeds']} seeds"
        )
    return with_source(
        table(["demo", *METHODS], cells),
        ["demo"],
        "`make demo`",
        f"{'; '.join(networks)}. In brackets: seeds with an error below 0.1.",
    )


def loss_terms() -> str:
    """Errors by problem and method; the lowest of a row is bold."""
    header = ["", "weight 1", "best weight", "balanced", *PEERS]
    cells = []
    for base in ("muon", "adam"):
        cells.append([f"**{base.capitalize()}**"])
        cells += [_row(case, base) for case in cases(base)]
    return with_source(
        table(header, cells),
        ["loss_terms_cpu", "loss_terms_gpu"],
        COMMAND,
        _budgets(),
    )


def _row(case: str, base: str) -> list[str]:
    weight, of_best = best_weight(case, base)
    found: list[Result | None] = [of_weight(case, base, 1.0), of_best]
    for method in ("balanced", *PEERS):
        run = was_run(case, base, method)
        found.append(of_method(case, base, method) if run else None)
    shown = [None if result is None else median(result) for result in found]
    lowest = min(float(x) for x in shown if x is not None)
    cells = []
    for words in shown:
        is_lowest = words is not None and float(words) == lowest
        cells.append(f"**{words}**" if is_lowest else words or "not run")
    if base != "adam":
        cells[-1] = "for Adam"
    cells[1] += f" ({weight:,.0f})"
    return [name_of(case), *cells]


def _budgets() -> str:
    """Seeds, steps and rates of the problems."""
    words = []
    for case, file in FILES.items():
        found = [run for run in content(file)["runs"] if run["case"] == case]
        rates = []
        for base in ("muon", "adam"):
            tried = sorted({run["lr"] for run in found if run["base"] == base})
            if tried:
                rates.append(f"{listed(tried)} for {base.capitalize()}")
        (steps,) = {run["steps"] for run in found}
        number_of_seeds = content(file)["settings"]["seeds"]
        words.append(
            f"{name_of(case)}: {number_of_seeds} seeds, {steps:,} steps, rates "
            f"{', '.join(rates)}"
        )
    return f"{'; '.join(words)}."


def weights() -> str:
    """What a weight costs that is not the best one, and what balanced terms cost."""
    cells = []
    for base in ("muon", "adam"):
        for case in cases(base):
            weight, of_best = best_weight(case, base)
            others = [of_weight(case, base, weight * f) for f in (1e-2, 1e2)]
            balanced = of_method(case, base, "balanced")
            ratios = [x.median / of_best.median for x in (*others, balanced)]
            of_one = balanced.median / of_weight(case, base, 1.0).median
            cells.append(
                [f"{name_of(case)}, {base.capitalize()}", f"{weight:,.0f}"]
                + [number(x) for x in (*ratios, of_one)]
            )
    header = ["", "best weight", "a hundredth of it", "a hundred times it"]
    header += ["balanced, over the best", "balanced, over weight 1"]
    return with_source(
        table(header, cells),
        ["loss_terms_cpu", "loss_terms_gpu"],
        "the commands of the table of errors",
    )


def over_best_weight(base: str = "muon") -> list[float]:
    """Balanced terms' error over that of the best weight, for each problem."""
    return [
        of_method(case, base, "balanced").median / best_weight(case, base)[1].median
        for case in cases(base)
    ]


def over_weight_1(base: str = "muon") -> list[float]:
    """Balanced terms' error over that of weight 1, for each problem."""
    return [
        of_method(case, base, "balanced").median / of_weight(case, base, 1.0).median
        for case in cases(base)
    ]


def best_weights(base: str = "muon") -> list[float]:
    """The best of the fixed weights for each problem."""
    return [best_weight(case, base)[0] for case in cases(base)]


def longer_runs() -> str:
    """Balanced terms with more steps."""
    header = ["", "steps", "rate", "error", "seeds"]
    cells = []
    for case in ("Helmholtz 7 x 50", "Burgers 8 x 40"):
        for base in ("muon", "adam"):
            r = best("loss_terms_gpu", case=case, base=base, method="balanced")
            cells.append(
                [
                    f"{name_of(case)}, {base.capitalize()}",
                    f"{r.settings['steps']:,}",
                    *(f"{r.rate:g}", median(r), seeds(r)),
                ]
            )
    command = f"`{PROGRAM} --methods balanced`"
    return with_source(table(header, cells), ["loss_terms_gpu"], command)


VARIANTS = {
    "unit scale, the rule of 0.1": "balanced",
    "the scale of the residual": "balanced, scale of the residual",
    "the geometric mean of the scales": "balanced, geometric mean",
    "scales averaged with a decay of 0.9": "balanced, average 0.9",
    "scales within a factor of 1,000": "balanced, max_ratio 1,000",
    "scales within a factor of 100": "balanced, max_ratio 100",
    "a scale for each term and layer": "balanced, per layer",
}


def variants() -> str:
    """Other ways to bring terms to one scale."""
    case = "Helmholtz 5 x 50"
    found = {
        label: of_method(case, "muon", method) for label, method in VARIANTS.items()
    }
    cells = [
        [label, median(r), number(np.min(r.scores)), number(np.max(r.scores))]
        for label, r in found.items()
    ]
    command = f'`{PROGRAM} --cases "{case}" --bases muon --methods ablation --seeds 3`'
    return with_source(
        table(["", "median", "lowest", "highest"], cells),
        [FILES[case]],
        command,
        f"{name_of(case)}, Muon, {len(found[next(iter(found))].scores)} seeds.",
    )
