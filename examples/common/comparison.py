"""Finished runs beside each other: what they are judged by, a table and a figure."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from examples.common import pictures
from examples.common.runs import DivergedError, Run, RunError, read_json

Record = dict[str, Any]
"""The name of a finished run, and what its metrics.json holds."""
Paths = tyro.conf.Positional[tuple[Path, ...]]

SHOWN = {"lr", "norm", "optimizer", "order", "scale_control"}
"""Settings that are in the name of a method, or on an axis."""
IGNORED = {"seed", "seeds", "chunk", "log_every", "checkpoint_every"}
"""Settings that do not tell one method from another."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A score, and which scores are good."""

    name: str
    key: str
    """The key of the scores in metrics.json."""
    lower_is_better: bool
    threshold: float
    """A seed counts as trained if its score is better."""
    highest: float
    """Scores above are drawn there: a failed run may have any score."""

    def scores(self, record: Record) -> np.ndarray:
        """By learning rate and seed; infinity or 0 where training stopped."""
        # What is not finite is null in JSON, and NaN here.
        values = np.array(record[self.key], float)
        failed = np.isnan(values) | (np.array(record.get("stopped_at_step", -1)) >= 0)
        values = np.where(failed, np.inf if self.lower_is_better else 0.0, values)
        return values.reshape(np.size(record["settings"]["lr"]), -1)

    def at_best_rate(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows of the learning rate with the best median.

        Rates are compared by the seeds that all of them have, if there are any.
        """
        rates = rows.groupby("seed")["lr"].transform("nunique")
        medians = rows[rates == rates.max()].groupby("lr")["score"].median()
        best = medians.idxmin() if self.lower_is_better else medians.idxmax()
        return rows[rows["lr"] == best]

    def trained(self, scores: pd.Series) -> str:
        """How many of the seeds trained."""
        better = pd.Series.lt if self.lower_is_better else pd.Series.gt
        return f"{better(scores, self.threshold).sum()}/{len(scores)}"

    @property
    def good(self) -> str:
        """When a seed counts as trained, in a few characters."""
        if np.isinf(self.threshold):
            return "finite"
        return f"{'<' if self.lower_is_better else '>'} {self.threshold:g}"


def quartiles(scores: pd.Series) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the seeds; may be infinite."""
    # "nearest": there is nothing between a number and infinity.
    low, high = np.quantile(scores, [0.25, 0.75], method="nearest")
    return float(low), float(np.median(scores)), float(high)


@dataclasses.dataclass(frozen=True)
class Judge:
    """How the runs of a program are read, judged and compared."""

    measures: tuple[Measure, ...]
    """The first that all runs have is what they are judged by."""
    axis: str
    """The setting on the x axis of a figure that compares methods over it."""
    defaults: Mapping[str, Any]
    """Values of settings that older records do not have."""
    speed: str
    """The key in metrics.json of how fast a run was."""

    def read(self, paths: Iterable[Path]) -> list[Record]:
        """The records of folders of runs and of files of collected ones."""
        found: list[Record] = []
        keys = {measure.key for measure in self.measures}
        for path in paths:
            if path.suffix == ".json":
                content = read_json(path, "a folder of collected runs")
                common = content.get("settings", {})
                for run in content.get("runs", []):
                    settings = {**common, **run.get("settings", {})}
                    found.append({"name": "", **run, "settings": settings})
            else:
                run = Run(path)
                found.append({"name": run.name, **run.metrics})
            if not found or keys.isdisjoint(found[-1]):
                raise RunError(
                    f"{path} is no run of this program: no {' or '.join(keys)} in it."
                )
        if not found:
            raise RunError("this needs the folders of one run or more.")
        return found

    def measure_of(self, found: Sequence[Record]) -> Measure:
        """What runs are judged by: the first measure that all of them have."""
        for measure in self.measures:
            if all(measure.key in run for run in found):
                return measure
        raise RunError("these runs have no score in common.")

    def rows(self, found: Sequence[Record]) -> pd.DataFrame:
        """A row for each score: its run, method, place on the axis, rate and seed."""
        measure = self.measure_of(found)
        settings = [{"seed": 0, **self.defaults, **run["settings"]} for run in found]
        # By their texts: a setting may be a list.
        texts = pd.DataFrame(settings).drop(columns=[*SHOWN, *IGNORED], errors="ignore")
        texts = texts.drop(columns=self.axis).astype(str)
        varying = texts.columns[texts.nunique() > 1]
        runs = pd.DataFrame(
            {
                "run": [record["name"] for record in found],
                "method": [method_of(s, varying) for s in settings],
                "place": [s[self.axis] for s in settings],
                "first_seed": [s["seed"] for s in settings],
                "speed": [record[self.speed] for record in found],
                "lr": [np.atleast_1d(s["lr"]).tolist() for s in settings],
                "score": [measure.scores(record).tolist() for record in found],
            }
        )
        rates = runs.explode(["lr", "score"]).reset_index(names="number")
        rows = rates.explode("score").astype({"lr": float, "score": float})
        rows["seed"] = rows["first_seed"] + rows.groupby(level=0).cumcount()
        # Runs that differ in nothing that the name of a method shows.
        twice = rows.duplicated(["method", "place", "lr", "seed"], keep=False)
        names = (rows["number"] + 1).astype(str) + ": " + rows["run"]
        alike = rows["method"].isin(rows["method"][twice])
        return rows.assign(method=names.where(alike, rows["method"]))

    def study(
        self, name: str, runs: Mapping[str, Any], train: Callable[[Any, Console], None]
    ) -> None:
        """Trains the runs that are not finished yet, by name, and shows all of them."""
        console = Console(soft_wrap=True)  # paths stay whole
        for i, (of_run, config) in enumerate(runs.items(), 1):
            console.rule(f"{of_run} ({i} of {len(runs)})")
            try:
                train(config, console)
            except DivergedError as error:
                print(f"Stopped: {error}")
        console.rule(name)
        self.show(self.read(config.out for config in runs.values()))

    def show(self, found: Sequence[Record]) -> None:
        """Prints a table: each method at its best learning rate."""
        measure, rows = self.measure_of(found), self.rows(found)
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        table.caption = (
            f"{measure.name} at the best learning rate, median and quartiles over seeds"
        )
        table.add_column("run", overflow="fold")
        speed = self.speed.replace("_per_", "/")
        for column in ("lr", "median", "quartiles", measure.good, speed):
            table.add_column(column, justify="right", no_wrap=True)
        several_places = rows["place"].nunique() > 1
        for (method, place), group in rows.groupby(["method", "place"], sort=False):
            name = f"{self.axis} {place}, {method}" if several_places else method
            if group["number"].nunique() == 1:
                name = group["run"].iloc[0] or name
            best, speed = measure.at_best_rate(group), group["speed"].median()
            digits = ".2e" if measure.lower_is_better else ".4f"
            low, median, high = (f"{x:{digits}}" for x in quartiles(best["score"]))
            table.add_row(
                name,
                f"{best['lr'].iloc[0]:g}",
                median,
                f"{low} - {high}",
                measure.trained(best["score"]),
                "-" if np.isnan(speed) else f"{speed:.1f}",
            )
        Console().print(table)

    def draw(self, found: Sequence[Record], path: Path) -> None:
        """Median and quartiles of the seeds above, how many of them trained below."""
        measure, rows = self.measure_of(found), self.rows(found)
        x = "lr" if rows["place"].nunique() == 1 else "place"
        if x == "place":
            each = rows.groupby(["method", "place"], sort=False)
            rows = pd.concat(measure.at_best_rate(group) for _, group in each)
        # Numbers in their order, names as they come.
        is_number = pd.api.types.is_numeric_dtype(rows[x])
        rows["tick"], ticks = pd.factorize(rows[x], sort=is_number)
        methods = rows.groupby("method", sort=False)
        number = len(methods)
        figure, (above, below) = plt.subplots(
            2,
            1,
            figsize=(9, 4.5 + 0.25 * number),
            sharex=True,
            height_ratios=[3.5, 0.25 * number],
            layout="constrained",
        )
        below.set_yticks(range(number), [name for name, _ in methods])
        for row, (_, of_method) in enumerate(methods):
            color = plt.get_cmap("tab20")((2 * row + row // 10) % 20)
            below.get_yticklabels()[row].set_color(color)
            scores = dict(iter(of_method.groupby("tick")["score"]))
            for tick, of_tick in scores.items():
                trained = measure.trained(of_tick)
                below.text(tick, row, trained, ha="center", va="center")
            bands = np.array([quartiles(of_tick) for of_tick in scores.values()])
            low, median, high = np.minimum(bands, measure.highest).T
            # Lines that share an x stand side by side.
            places = np.add(list(scores), 0.4 * ((row + 0.5) / number - 0.5))
            bars = np.maximum([median - low, high - median], 0)
            above.errorbar(places, median, bars, color=color, marker="o", capsize=3)
        above.set_yscale("log" if measure.lower_is_better else "linear")
        above.set_ylabel(f"{measure.name}\nmedian and quartiles of seeds")
        above.grid(which="both", axis="y", alpha=0.2)
        below.set_title(f"seeds with {measure.name} {measure.good}", fontsize="medium")
        below.set(xlabel="learning rate" if x == "lr" else self.axis)
        below.set(xlim=(-0.5, len(ticks) - 0.5), ylim=(number - 0.5, -0.5))
        below.set_xticks(
            range(len(ticks)), [f"{at:g}" if is_number else at for at in ticks]
        )
        pictures.save(figure, path)

    def collect(self, runs: Paths, out: Path) -> None:
        """One JSON file of several finished runs: settings and results.

        Args:
          runs: Folders of finished runs.
          out: File for the records.
        """
        found = self.read(runs)
        save(found, out)
        print(f"{len(found)} runs: {out}")

    def compare(self, runs: Paths, out: Path = Path("comparison.png")) -> None:
        """One table and one figure of several runs.

        The figure is over learning rates if all runs have the same depth or model.
        Otherwise it is over depth or model, each method at its best rate.

        Args:
          runs: Folders of finished runs, or files that `collect` wrote.
          out: File for the figure.
        """
        if out.suffix != ".png":
            raise RunError(f"--out must end in .png, got {out}.")
        found = self.read(runs)
        self.show(found)
        self.draw(found, out)
        print(f"Figure: {out}")


def method_of(settings: Mapping[str, Any], varying: Iterable[str]) -> str:
    """Norm, scale control and optimizer, and the other settings that differ."""
    control = settings["scale_control"]
    parts = [control, settings["optimizer"]]
    if settings.get("order") == "after":
        parts.reverse()
    if settings.get("norm") == "batch":
        parts.insert(0, "BatchNorm")
    method = " + ".join(part for part in parts if part != "none")
    # Only StableGrad has these.
    hidden = () if "stablegrad" in control else ("group_by", "statistic")
    others = [f"{name} {settings.get(name)}" for name in varying if name not in hidden]
    return ", ".join([method, *others])


def save(records: Sequence[Record], path: Path) -> None:
    """Writes records to a file, one line for each run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    path.write_text('{"runs": [\n' + lines + "\n]}\n")
