"""Tables of deep physics-informed networks: errors by depth, by seed, by rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from docs.results.records import Result, Settings, best, content
from docs.results.tables import (
    listed,
    median,
    number,
    pinn_command,
    seeds,
    table,
    trained,
    with_source,
)
from examples.pinn.problems import PROBLEMS, burgers_inverse
from examples.pinn.problems.burgers import NU

Rows = Mapping[str, tuple[str, Settings]]
"""The file and the settings of each row, by its label."""

CONTROLS = {
    "clip": "clip",
    "AGC": "agc",
    "normalize": "normalize",
    "StableGrad": "stablegrad",
    "StableGrad with the paper's reference": "stablegrad-prediction",
}


def method(label: str) -> dict[str, Any]:
    """The settings of a method by its name, such as "clip + adam"."""
    *controls, optimizer = label.split(" + ")
    control = CONTROLS[controls[0]] if controls else "none"
    return {"optimizer": optimizer, "scale_control": control}


METHODS = ("adam", "clip + adam", "StableGrad + adam", "muon", "StableGrad + muon")


def by_depth(rows: Rows, depths: Sequence[int]) -> str:
    """The error of each row at each depth, and how many seeds trained at the last."""
    found = {
        label: [best(file, depth=depth, **wanted) for depth in depths]
        for label, (file, wanted) in rows.items()
    }
    header = ["", *(f"{n} layers" for n in depths), f"trained at {depths[-1]}"]
    cells = [
        [label, *map(median, results), trained(results[-1])]
        for label, results in found.items()
    ]
    results = [result for row in found.values() for result in row]
    files = list(dict.fromkeys(file for file, _ in rows.values()))
    example = next(iter(found.values()))[0]
    return with_source(
        table(header, cells),
        files,
        f"commands such as {pinn_command(example)}",
        f"{setting(results)}, each at its best rate.",
    )


def by_seed(rows: Rows) -> str:
    """The error at the best rate and that of each seed, and the rates that were run."""
    found = {label: best(file, **wanted) for label, (file, wanted) in rows.items()}
    results = list(found.values())
    cells = [
        [label, median(r), f"{r.rate:g}", listed(r.rates), seeds(r), trained(r)]
        for label, r in found.items()
    ]
    return with_source(
        table(["", "error", "rate", "rates run", "seeds", "trained"], cells),
        list(dict.fromkeys(file for file, _ in rows.values())),
        f"commands such as {pinn_command(results[0])}",
        f"{setting(results)}.",
    )


SETTINGS = {
    "depth": "{} layers",
    "width": "width {}",
    "initialization": "{} weights",
    "interior_points": "{} points inside",
    "condition_points": "{} on each condition",
    "condition_weight": "weight {} of the conditions",
    "steps": "{} steps",
    "schedule": "{} schedule",
    "seeds": "{} seeds",
}


def is_balanced(result: Result) -> bool:
    """Whether its terms are balanced, so that they have no weight."""
    return result.settings.get("terms") == "balanced"


def setting(results: Sequence[Result], *, without: Sequence[str] = ()) -> str:
    """The settings that all results have in common, in words."""
    words = []
    weighted = [result for result in results if not is_balanced(result)]
    for name, text in SETTINGS.items():
        using = weighted if name == "condition_weight" else results
        values = {result.settings.get(name) for result in using}
        if len(values) == 1 and None not in values and name not in without:
            words.append(text.format(listed(values)))
            if len(using) < len(results):
                words[-1] += " unless terms are balanced"
    text = ", ".join(words)
    return text[0].upper() + text[1:]


def pinn_depth() -> str:
    """Poisson's equation: error over depth."""
    rows = {label: ("pinn_depth", method(label)) for label in METHODS}
    balanced = {"optimizer": "muon"}
    return by_depth(
        {**rows, "muon, balanced terms": ("pinn_depth_balanced", balanced)},
        (16, 64, 128),
    )


def pinn_seeds(depth: int) -> str:
    """Poisson's equation at one depth: the seeds."""
    rows = {
        label: ("pinn_depth", {**method(label), "depth": depth}) for label in METHODS
    }
    balanced = ("pinn_depth_balanced", {"depth": depth})
    return by_seed({**rows, "muon, balanced terms": balanced})


def pinn_rates() -> str:
    """Balanced terms at each rate and depth, up to 256 layers."""
    by_name = {
        f"{depth}": best("pinn_depth_balanced", depth=depth) for depth in (16, 64, 128)
    }
    several = "depth256-muon-none-critical-balanced"
    by_name["256"] = best("pinn_256_layers", name=several)
    by_name["256, one seed"] = best("pinn_256_layers", name=f"{several}-one-seed")
    rates = sorted({rate for result in by_name.values() for rate in result.rates})

    def cell(result: Result, rate: float) -> str:
        if rate not in result.rates:
            return "not run"
        at_rate = result.at(rate)
        return f"{median(at_rate)} ({trained(at_rate)})"

    cells = [
        [layers, result.settings["initialization"]]
        + [cell(result, rate) for rate in rates]
        for layers, result in by_name.items()
    ]
    first = by_name["16"]
    return with_source(
        table(["layers", "weights", *(f"{rate:g}" for rate in rates)], cells),
        ["pinn_depth_balanced", "pinn_256_layers"],
        f"commands such as {pinn_command(first)}",
        f"{setting(list(by_name.values()))}, {first.settings['seeds']} seeds. In "
        "brackets: seeds with an error below 0.1.",
    )


SGD = {
    "sgd": "none",
    "clip + sgd": "clip",
    "AGC + sgd": "agc",
    "StableGrad + sgd": "stablegrad",
    "StableGrad with the paper's reference + sgd": "stablegrad-prediction",
}


def sgd_rates() -> str:
    """SGD in a deep network, at each rate."""
    by_name = {
        label: best("pinn_sgd", name=f"depth64-sgd-{control}")
        for label, control in SGD.items()
    }
    rates = by_name["sgd"].rates
    cells = [
        [label, *(median(result.at(rate)) for rate in rates)]
        for label, result in by_name.items()
    ]
    return with_source(
        table(["", *(f"{rate:g}" for rate in rates)], cells),
        ["pinn_sgd"],
        "`python -m examples.pinn study sgd --depths 64 --seeds 1`",
        f"{setting(list(by_name.values()), without=['seeds'])}, one seed.",
    )


def sgd_seeds() -> str:
    """SGD alone and behind StableGrad, at rates below those of the study."""
    names = {"sgd": "none", "StableGrad + sgd": "stablegrad"}
    return by_seed(
        {
            label: ("pinn_sgd", {"name": f"depth64-sgd-{control}-low-rates"})
            for label, control in names.items()
        }
    )


def helmholtz() -> str:
    rows: Rows = {
        f"{label}, {steps:,} steps": (
            "pinn_helmholtz",
            {**method(label), "steps": steps},
        )
        for steps, labels in ((20_000, METHODS), (40_000, METHODS[-2:]))
        for label in labels
    }
    return by_seed(rows)


def burgers() -> str:
    runs = {
        "muon": "muon-none",
        "StableGrad + muon": "muon-stablegrad",
        "StableGrad + muon, half the points": "muon-stablegrad-512-points",
        "adam, then L-BFGS": "adam-none-lbfgs",
        "StableGrad + adam, then L-BFGS": "adam-stablegrad-lbfgs",
    }
    found = {
        label: best("pinn_burgers", name=f"depth16-{name}")
        for label, name in runs.items()
    }
    cells = []
    for label, r in found.items():
        s, numbers = r.settings, [f"{r.rate:g}", median(r), seeds(r)]
        if s.get("lbfgs_steps"):
            steps = f"{s['steps']:,} + {s['lbfgs_steps']:,}"
            cells.append([label, steps, f"{s['lbfgs_points']:,} for L-BFGS", *numbers])
        else:
            cells.append(
                [label, f"{s['steps']:,}", f"{s['interior_points']:,}", *numbers]
            )
    return with_source(
        table(["", "steps", "points inside", "rate", "error", "seeds"], cells),
        ["pinn_burgers"],
        f"commands such as {pinn_command(found['muon'])}",
        f"{setting(list(found.values()))}.",
    )


def what_goes_with_muon() -> str:
    sg = {"scale_control": "stablegrad"}
    muon, adam = {"optimizer": "muon"}, {"optimizer": "adam"}
    before = {**muon, **sg, "order": "before", "initialization": "glorot"}
    layer = {**before, "group_by": "layer"}
    paper = {**muon, "scale_control": "stablegrad-prediction"}
    rows: Rows = {
        "muon": ("pinn_muon", method("muon")),
        "StableGrad + muon": ("pinn_muon", layer),
        "the same, one gain for all layers": (
            "pinn_muon",
            {**before, "group_by": "tree"},
        ),
        "the same, `critical` weights": (
            "pinn_muon",
            {**layer, "initialization": "critical"},
        ),
        "the same, the paper's reference": ("pinn_muon", paper),
        "muon, then StableGrad": ("pinn_muon", {**layer, "order": "after"}),
        "lion": ("pinn_muon", method("lion")),
        "StableGrad + lion": ("pinn_muon", method("StableGrad + lion")),
        "StableGrad + adam": ("pinn_depth", {**adam, **sg, "depth": 64}),
        "the same, one gain for all its layers": (
            "pinn_muon",
            {**adam, **sg, "group_by": "tree"},
        ),
    }
    return by_seed(rows)


def problems() -> str:
    """Systems, unknown coefficients and other domains, by balanced terms."""
    runs = {
        "Kovasznay flow, the worst of u, v, p": "kovasznay",
        "Kovasznay flow, 3,000 steps": "kovasznay-3000-steps",
        "Burgers inverse, exact values": "burgers-inverse",
        "Burgers inverse, noise of 1 %": "burgers-inverse-noisy",
        "Poisson on an L-shape": "l-shape",
        "Poisson on an L-shape, 3,000 steps": "l-shape-3000-steps",
        "advection, c = 30": "advection",
        "the same, more steps and points": "advection-10000-steps",
    }
    found = {label: best("pinn_problems", name=name) for label, name in runs.items()}
    cells = []
    for label, r in found.items():
        s = r.settings
        network = f"{s['depth']} × {s['width']}, {s['steps']:,}, {r.rate:g}"
        cells.append([label, network, points(s), median(r), seeds(r)])
    results = list(found.values())
    return with_source(
        table(["problem", "network, steps, rate", "points", "median", "seeds"], cells),
        ["pinn_problems"],
        f"commands such as {pinn_command(results[0])}",
        f"{setting(results)}; Muon, balanced terms.",
    )


def points(settings: Settings) -> str:
    """Collocation points inside, and on the conditions."""
    inside, name = f"{settings['interior_points']:,}", settings["problem"]
    if name.startswith("burgers-inverse"):
        return f"{inside} + {burgers_inverse.VALUES:,} values"
    conditions = len(PROBLEMS[name].conditions)
    factor = f"{conditions} × " if conditions > 1 else ""
    return f"{inside} + {factor}{settings['condition_points']:,}"


def coefficients(file: str, runs: Mapping[str, str]) -> str:
    """Unknown coefficients of Burgers' equation, by labels of runs and their names."""
    found = {label: best(file, name=name) for label, name in runs.items()}
    cells = [
        [label, median(found[label]), *_off(file, name)] for label, name in runs.items()
    ]
    header = ["", "error of u", "λ off by", "worst seed", "ν off by", "worst seed"]
    first = next(iter(found.values()))
    return with_source(
        table(header, cells),
        [file],
        f"commands such as {pinn_command(first)}",
        f"{setting(list(found.values()), without=['condition_points'])}.",
    )


def _off(file: str, name: str) -> list[str]:
    """By how much λ and ν are off: the median over the seeds and the largest."""
    (run,) = (run for run in content(file)["runs"] if run["name"] == name)
    result = best(file, name=name)
    rate = result.settings["lr"].index(result.rate)
    found = {key: np.array(rows[rate]) for key, rows in run["unknowns"].items()}
    exact = PROBLEMS["burgers-inverse"].exact_unknowns
    off_convection = np.abs(found["convection"] / exact["convection"] - 1)
    off_nu = np.abs(np.exp(found["log_nu"]) / NU - 1)
    return [
        f"{number(100 * x)} %"
        for off in (off_convection, off_nu)
        for x in (np.median(off), np.max(off))
    ]


def inverse_weights() -> str:
    """Fixed weights of the data and balanced terms, in fewer steps."""
    runs = {
        **{f"weight {w:,}": f"weight-{w}" for w in (1, 10, 100, 1000, 10_000)},
        "balanced": "balanced",
        **{f"balanced, `weight={w}`": f"balanced-importance-{w}" for w in (10, 30)},
        **{f"noise, weight {w:,}": f"noisy-weight-{w}" for w in (1000, 10_000)},
        "noise, balanced": "noisy-balanced",
        "noise, balanced, `weight=10`": "noisy-balanced-importance-10",
    }
    return coefficients("pinn_inverse_weights", runs)


def inverse() -> str:
    runs = {"exact values": "burgers-inverse", "noise of 1 %": "burgers-inverse-noisy"}
    return coefficients("pinn_problems", runs)
