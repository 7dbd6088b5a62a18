"""Figures of the records of benchmarks.loss_terms.

python -m benchmarks.loss_terms.figure weights FILE.json [FILE.json ...] --out FILE.png

weights: error over the weight of the conditions, and the methods that have none.
errors: every problem and method, as colours. profile: how often a method is close to
the best of all.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.artist import Artist
from matplotlib.colors import LogNorm

from examples.common import pictures

STYLES = {
    "balanced": ("tab:red", "-", 2.5),
    "equal scales (0.1)": ("tab:orange", (0, (5, 1, 1, 1)), 1.3),
    "gradient norms": ("tab:blue", "--", 1.3),
    "annealing": ("tab:green", ":", 1.6),
    "ConFIG": ("tab:purple", "-.", 1.3),
    "MultiAdam": ("tab:brown", (0, (1, 3)), 1.6),
    "DN-PINN": ("tab:cyan", "-", 1.3),
    "AutoBalance": ("tab:olive", "--", 1.3),
}
"""Colour, line style and width of the methods without a weight."""
FAILED = 2.0
"""Larger errors, and those that are not finite, are drawn as this one."""
LOST = 0.3
"""A seed with a larger error is lost."""

Records = tyro.conf.Positional[tuple[Path, ...]]


def best(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    """Quartiles of the seeds at the rate with the lowest median."""
    errors = [
        [FAILED if x is None else min(x, FAILED) for x in run["errors"]] for run in runs
    ]
    return np.quantile(min(errors, key=np.median), [0.25, 0.5, 0.75])


def panel(ax, runs: Sequence[dict[str, Any]]) -> None:
    weights = sorted({run["weight"] for run in runs if "weight" in run})
    bands = [best([run for run in runs if run.get("weight") == w]) for w in weights]
    low, median, high = np.transpose(bands)
    ax.plot(weights, median, "o-", color="black", label="fixed weight")
    ax.fill_between(weights, low, high, color="black", alpha=0.12, linewidth=0)
    for name, (color, style, width) in STYLES.items():
        of_method = [run for run in runs if run["method"] == name]
        if of_method:
            low, median, high = best(of_method)
            ax.axhline(
                median, color=color, linestyle=style, linewidth=width, label=name
            )
            if name == "balanced":
                ax.axhspan(low, high, color=color, alpha=0.15, linewidth=0)
    ax.set(xscale="log", yscale="log", ylim=(1e-4, FAILED))
    ax.grid(which="major", alpha=0.3)


def read(records: Sequence[Path], base: str) -> list[dict[str, Any]]:
    runs = [run for path in records for run in json.loads(path.read_text())["runs"]]
    return [run for run in runs if run["base"] == base]


def weights(records: Records, out: Path, base: str = "muon") -> None:
    """Draws the cases that were run with fixed weights, each at its best rate."""
    runs = read(records, base)
    cases = list(dict.fromkeys(run["case"] for run in runs if "weight" in run))
    # Two in a row, so that they can be read on a small screen.
    rows, columns = (len(cases) + 1) // 2, min(2, len(cases))
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.6 * columns + 0.4, 2.9 * rows + 0.6),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax in axes.flat[len(cases) :]:
        ax.set_visible(False)
    lines: dict[str, Artist] = {}
    for ax, case in zip(axes.flat, cases, strict=False):
        panel(ax, [run for run in runs if run["case"] == case])
        size = re.sub(r" (\d+) x (\d+)", r", \1 layers of \2", case)
        ax.set(title=f"{size}: {base.capitalize()}", xlabel="weight of the conditions")
        handles, labels = ax.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    for ax in axes[:, 0]:
        ax.set_ylabel("relative L2 error")
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=3)
    pictures.save(figure, out)


def label(run: dict[str, Any]) -> str:
    """The method of a run, or its options, as a row of a figure."""
    options = [x for x in ("weight", "decay", "power") if x in run]
    return ", ".join(f"{x} {run[x]:,g}" for x in options) or run["method"]


def by_case(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """For each method and case the errors of the seeds, at the better rate.

    At most FAILED, as which a run that is not finite counts.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for run in runs:
        errors = np.minimum(np.array(run["errors"], float), FAILED)
        errors = np.where(np.isnan(errors), FAILED, errors)
        cases = found.setdefault(label(run), {})
        before = cases.get(run["case"])
        if before is None or np.median(errors) < np.median(before):
            cases[run["case"]] = errors
    return found


def errors(records: Records, out: Path, base: str = "muon") -> None:
    """Draws the median of the seeds, and marks how many of them failed."""
    found = by_case(read(records, base))
    methods = sorted(found, key=lambda m: profile_of(found, m)[1].mean())[::-1]
    cases = list(dict.fromkeys(case for of in found.values() for case in of))
    medians = np.full((len(methods), len(cases)), np.nan)
    figure, ax = plt.subplots(
        figsize=(2.6 + 0.55 * len(cases), 2.2 + 0.36 * len(methods)),
        layout="constrained",
    )
    for i, method in enumerate(methods):
        for j, case in enumerate(cases):
            if case not in found[method]:
                continue
            seeds = found[method][case]
            medians[i, j] = np.median(seeds)
            lost = int(np.sum(seeds > LOST))
            color = "white" if medians[i, j] > 0.05 else "black"
            shown = f"{medians[i, j]:.2g}".replace("0.", ".") + "\n"
            shown += f"{lost} lost" if lost else ""
            ax.text(j, i, shown.strip(), ha="center", va="center", color=color, size=6)
    colors = ax.imshow(
        medians, norm=LogNorm(1e-4, 1), cmap="YlOrRd", aspect="auto", origin="upper"
    )
    ax.set_xticks(range(len(cases)), cases, rotation=40, ha="right", size=7)
    ax.set_yticks(range(len(methods)), methods, size=8)
    figure.colorbar(colors, ax=ax, label="relative L2 error, median of seeds", pad=0.01)
    pictures.save(figure, out)


def profile_of(
    found: dict[str, dict[str, np.ndarray]], method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Factors, and the share of the seeds within each of the best method's median."""
    cases = [case for case in found[method] if all(case in of for of in found.values())]
    best = {case: min(np.median(of[case]) for of in found.values()) for case in cases}
    ratios = np.concatenate([found[method][case] / best[case] for case in cases])
    factors = np.geomspace(1, 1000, 200)
    return factors, np.mean(ratios[:, None] <= factors, axis=0)


def profile(
    records: Records, out: Path, base: str = "muon", without: tuple[str, ...] = ()
) -> None:
    """Draws the performance profile of each method, over what all of them ran.

    Dolan and Moré, Math. Program. 91 (2002).

    Args:
      without: methods that are left out, such as those that ran few problems.
    """
    found = by_case(read(records, base))
    found = {method: of for method, of in found.items() if method not in without}
    figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for i, method in enumerate(found):
        color, style, width = STYLES.get(method, (f"C{i}", "-", 1.0))
        factors, share = profile_of(found, method)
        ax.plot(factors, share, color=color, ls=style, lw=width, label=method)
    ax.set(
        xscale="log",
        xlim=(1, 1000),
        ylim=(0, 1.02),
        xlabel="error, over the median of the best method of the problem",
        ylabel="share of problems and seeds",
    )
    ax.grid(which="major", alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
    pictures.save(figure, out)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict(
        {"weights": weights, "errors": errors, "profile": profile}
    )
