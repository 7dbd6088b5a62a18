"""Errors of the published methods, of the control and of ours, for each problem.

python -m benchmarks.pinnacle.figure FILE.json --out FILE.png
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import tyro

from examples.common import pictures

STYLES = {"ours": ("tab:red", "o", 42), "control": ("tab:blue", "x", 30)}


def draw(record: tyro.conf.Positional[Path], out: Path) -> None:
    runs = json.loads(record.read_text())["runs"]
    problems = list(dict.fromkeys(run["problem"] for run in runs))
    figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for run in runs:
        color, marker, size = STYLES.get(run["method"], ("gray", "_", 160))
        label = run["method"] if run["method"] in STYLES else "published methods"
        errors = [x for x in run["errors"] if x is not None]
        places = [problems.index(run["problem"])] * len(errors)
        ax.scatter(places, errors, size, color, marker=marker, alpha=0.8, label=label)
    ax.set(yscale="log", ylabel="relative L2 error")
    ax.set_xticks(range(len(problems)), problems, rotation=20)
    ax.grid(axis="y", alpha=0.3)
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=3)
    pictures.save(figure, out)


if __name__ == "__main__":
    tyro.cli(draw)
