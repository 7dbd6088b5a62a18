"""The tables of `tables.toml` in Markdown.

Links are as from the root of the repository; `pages` makes them those of a page.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from docs.results.records import (
    NotRunError,
    Result,
    ResultError,
    Settings,
    best,
    content,
    device,
    number,
    path_of,
    span,
)

SPECIFICATIONS = tomllib.loads(Path(__file__).with_name("tables.toml").read_text())


def table(name: str) -> str:
    """A table, and below it one line: settings, the raw values, what makes them."""
    if name not in SPECIFICATIONS:
        raise ResultError(f"tables.toml has no table {name}")
    specification = SPECIFICATIONS[name]
    columns = [
        (*column, {})[:3]
        for column in (
            *shared(specification.get("columns", [])),
            # The same at each of several learning rates.
            *(
                [f"{rate:g}", specification["cell"], {"rate": rate}]
                for rate in specification.get("rates", [])
            ),
        )
    ]
    rows, files, common = (_timed if "timed" in specification else _measured)(
        specification, columns
    )
    header = [specification.get("head", ""), *(heading for heading, *_ in columns)]
    note = specification.get("note", "").format_map(common)
    source = f"{_links(files)} by {specification['command']}."
    return f"{markdown(header, rows)}\n\n{note}{' ' if note else ''}{source}\n"


def shared(items: Any) -> list[Any]:
    """Rows or columns, in which names stand for those of several tables."""
    if isinstance(items, str):
        return shared(SPECIFICATIONS["shared"][items])
    return [
        each
        for item in items
        for each in (shared(item) if isinstance(item, str) else [item])
    ]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; rows may be shorter than the header."""
    cells = [list(header), ["---"] * len(header)]
    cells += [[*row, *[""] * (len(header) - len(row))] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _links(files: Iterable[str]) -> str:
    """The files, each once, and the devices that made them."""
    files = list(dict.fromkeys(files))
    paths = [Path(path_of(file)) for file in files]
    if len(paths) == 1:
        links = f"[Raw values]({paths[0]})"
    else:
        links = "Raw values: " + ", ".join(f"[{path.name}]({path})" for path in paths)
    devices = " and ".join(dict.fromkeys(f"a {device(file)}" for file in files))
    return f"{links}, made on {devices.replace('a NV', 'an NV')}"


Filled = tuple[list[list[str]], list[str], Mapping[str, Any]]
"""Rows of cells, the files they are from, and what a note may name."""


def _timed(specification: Settings, columns: Sequence[Any]) -> Filled:
    """Times of methods over those of one of them."""
    record, over = content(specification["timed"]), specification["over"]
    methods = record["methods"]
    unit = np.median(methods[over]["seconds"])
    compile_over = methods[specification.get("compile_over", over)]["compile_seconds"]
    rows = []
    for name, method in methods.items():
        low, time, high = np.quantile(method["seconds"], [0.25, 0.5, 0.75]) / unit
        texts = {
            "time": f"{time:.2f}",
            "quartiles": f"{low:.2f} to {high:.2f}",
            "compile": f"{method['compile_seconds'] / compile_over:.2f}",
        }
        is_code = specification.get("code") and " " not in name
        cells = [text.format_map(texts) for _, text, _ in columns]
        rows.append([f"`{name}`" if is_code else name, *cells])
    return rows, [specification["timed"]], record["settings"]


def _measured(specification: Settings, columns: Sequence[Any]) -> Filled:
    """The runs of each row and column."""
    rows: list[list[str]] = []
    results: list[Result] = []
    for label, of_row in shared(specification["rows"]):
        wanted = {**specification.get("where", {}), **of_row}
        cells = wanted.pop("cells", {})
        found = _results(wanted, columns) if of_row else []
        known = [result for result in found if result]
        if of_row and not known:
            raise ResultError(f"there is no run in the row of {label}")
        in_bold = ""
        if known and specification.get("best_in_bold"):
            in_bold = min(known, key=lambda result: result.cost).texts()["median"]
        row = [label]
        for (heading, text, of_column), result in zip(columns, found, strict=False):
            over = {**wanted, **of_column["over"]} if "over" in of_column else None
            row.append(_cell(cells.get(heading, text), result, over, in_bold))
        rows.append(row)
        results += known
    return rows, [result.file for result in results], _in_common(results)


def _results(wanted: Settings, columns: Sequence[Any]) -> list[Result | None]:
    """Those of the columns of a row; None where nothing was run."""
    results: list[Result | None] = []
    for *_, of_column in columns:
        settings = {**wanted, **of_column}
        settings.pop("over", None)
        if settings.get("rate") == "same":
            settings["rate"] = results[-1] and results[-1].rate
        try:
            results.append(best(**settings))
        except NotRunError:
            results.append(None)
    return results


def _cell(text: str, result: Result | None, over: Settings | None, in_bold: str) -> str:
    if result is None:
        return "not run" if "{median}" in text or "{ratio}" in text else ""
    texts = result.texts()
    if over is not None:
        texts["ratio"] = number(result.median / best(**over).median)
    if texts["median"] == in_bold:
        texts["median"] = f"**{in_bold}**"
    return text.format_map(texts)


def _in_common(results: Sequence[Result]) -> dict[str, Any]:
    """The settings that all results have, and what is known of the images."""
    first, *others = [result.settings for result in results]
    settings = {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }
    file = results[0].file
    median = float(np.median([result.median for result in results]))
    errors = {"two_errors": 2 * standard_error(file, median)}
    return {**settings, **errors, **content(file).get("data", {})}


def standard_error(file: str, accuracy: float) -> float:
    """That of an accuracy on the test images of a file; zero if there are none."""
    if "data" not in content(file):
        return 0.0
    images = content(file)["data"]["test_images"]
    return float(np.sqrt(accuracy * (1 - accuracy) / images))


# --- Where it wins, ties and loses, by one rule on the seeds ---

WINS, TIES, LOSES = VERDICTS = ("wins", "ties", "loses")
RULE = (
    "*Wins*: every seed is better than every seed of the other method. *Loses*: the "
    "median is worse than every seed of the other. *Ties*: neither. Numbers are "
    "medians over the seeds, at the best learning rate of each method. With one seed, "
    "its accuracy plus or minus one standard error (from the number of test images) "
    "takes the place of the seeds."
)


def where_it_wins() -> str:
    """Situations, and by whose side the library wins, ties and loses."""
    header = ["where", "wins against", "ties with", "loses to"]
    rows = [_beside_others(**row) for row in SPECIFICATIONS["where_it_wins"]]
    return f"{markdown(header, rows)}\n\n{RULE}\n"


def verdict(ours: Result, other: Result, error: float = 0.0) -> str:
    """Wins, ties or loses; `error` widens the range of a single seed."""
    a, b = ours.costs, other.costs
    margins = [error if len(costs) == 1 else 0.0 for costs in (a, b)]
    if np.max(a) + margins[0] < np.min(b) - margins[1]:
        return WINS
    if np.median(a) - margins[0] > np.max(b) + margins[1]:
        return LOSES
    return TIES


def pairs(cases: Any, ours: Settings, other: Settings) -> list[tuple[Result, Result]]:
    """The results of two methods in each case in which both were run."""
    found = []
    for _, case in shared(cases):
        try:
            found.append((best(**{**case, **ours}), best(**{**case, **other})))
        except NotRunError:
            continue
    return found


def _beside_others(
    situation: str, page: str, cases: Any, ours: Settings, others: Any
) -> list[str]:
    """A situation, and who ours wins against, ties with and loses to."""
    link = f"[{situation}](docs/{page}.md)"
    is_one = len(shared(cases)) == 1
    columns: dict[str, list[str]] = {name: [] for name in VERDICTS}
    for name, other in shared(others):
        found = pairs(cases, ours, other)
        file = shared(cases)[0][1]["file"]
        error = standard_error(file, found[0][0].median)
        for column in VERDICTS:
            so = [pair for pair in found if verdict(*pair, error) == column]
            if so and is_one:
                columns[column].append(f"{name} {so[0][1].texts()['median']}")
            elif so:
                ratios = span(ours.median / other.median for ours, other in so)
                columns[column].append(
                    f"{name} on {len(so)} of {len(found)} ({ratios})"
                )
    if is_one:
        link += f": {found[0][0].texts()['median']}"
    return [link, *(", ".join(words) or "–" for words in columns.values())]
