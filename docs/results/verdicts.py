"""Where the library wins, ties and loses, by one rule on the seeds."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from docs.results import images, pinns, terms
from docs.results.records import Result, best
from docs.results.tables import listed, median, span, table

WINS, TIES, LOSES = VERDICTS = ("wins", "ties", "loses")
RULE = (
    "*Wins*: every seed is better than every seed of the other method. *Loses*: the "
    "median is worse than every seed of the other. *Ties*: neither. Numbers are "
    "medians over the seeds, at the best learning rate of each method. With one seed, "
    "its accuracy plus or minus one standard error (from the number of test images) "
    "takes the place of the seeds."
)


def verdict(ours: Result, other: Result, error: float = 0.0) -> str:
    """Wins, ties or loses; `error` widens the range of a single seed."""
    sign = 1 if ours.measure.lower_is_better else -1
    a, b = sign * ours.scores, sign * other.scores
    margins = [error if len(scores) == 1 else 0.0 for scores in (a, b)]
    if np.max(a) + margins[0] < np.min(b) - margins[1]:
        return WINS
    if np.median(a) - margins[0] > np.max(b) + margins[1]:
        return LOSES
    return TIES


Pair = tuple[Result, Result]


@dataclasses.dataclass(frozen=True)
class Row:
    """A situation, and the runs of ours and of others by the other's name."""

    situation: str
    page: str
    others: Mapping[str, Sequence[Pair]]
    error: float = 0.0

    def cells(self) -> list[str]:
        """The situation, and who ours wins against, ties with and loses to."""
        link = f"[{self.situation}](docs/{self.page}.md)"
        several = any(len(pairs) > 1 for pairs in self.others.values())
        if not several:
            ((ours, _),) = next(iter(self.others.values()))
            link += f": {median(ours)}"
        columns: dict[str, list[str]] = {name: [] for name in VERDICTS}
        for name, pairs in self.others.items():
            verdicts = [verdict(*pair, self.error) for pair in pairs]
            for column in VERDICTS:
                found = [p for p, v in zip(pairs, verdicts, strict=True) if v == column]
                if found and several:
                    ratios = span(ours.median / other.median for ours, other in found)
                    columns[column].append(
                        f"{name} on {len(found)} of {len(pairs)} ({ratios})"
                    )
                elif found:
                    columns[column].append(f"{name} {median(found[0][1])}")
        return [link, *(", ".join(words) or "–" for words in columns.values())]


def where_it_wins() -> str:
    """Situations, and by whose side the library wins, ties and loses."""
    rows = [*of_terms(), *of_pinns(), *of_images()]
    header = ["where", "wins against", "ties with", "loses to"]
    return f"{table(header, (row.cells() for row in rows))}\n\n{RULE}\n"


def of_terms() -> list[Row]:
    """Balanced terms beside fixed weights and beside other methods."""

    def beside(base: str, method: str) -> list[Pair]:
        pairs = []
        for case in terms.cases(base):
            ours = terms.of_method(case, base, "balanced")
            if method == "weight 1":
                pairs.append((ours, terms.of_weight(case, base, 1.0)))
            elif method == "the best of nine weights":
                pairs.append((ours, terms.best_weight(case, base)[1]))
            elif terms.was_run(case, base, method):
                pairs.append((ours, terms.of_method(case, base, method)))
        return pairs

    def row(base: str, others: str, *methods: str) -> Row:
        networks = len(terms.cases(base))
        return Row(
            f"`balance_terms`, {base.capitalize()}, {networks} PINNs, beside {others}",
            "loss_terms",
            {method: beside(base, method) for method in methods},
        )

    weights = ("weight 1", "the best of nine weights")
    return [
        row("muon", "fixed weights", *weights),
        row("muon", "other methods", "gradient norms", "ConFIG"),
        row("adam", "fixed weights", *weights),
    ]


def of_pinns() -> list[Row]:
    """`stablegrad` in deep PINNs, before Adam and before Muon."""
    depths = (16, 64, 128)

    def poisson(label: str, depth: int) -> Result:
        return best("pinn_depth", depth=depth, **pinns.method(label))

    def pairs(ours: str, other: str) -> list[Pair]:
        return [(poisson(ours, depth), poisson(other, depth)) for depth in depths]

    muon = pairs("StableGrad + muon", "muon")
    for file, steps in (("pinn_helmholtz", 20_000), ("pinn_burgers", 15_000)):
        ours, other = (
            best(file, steps=steps, **pinns.method(label))
            for label in ("StableGrad + muon", "muon")
        )
        muon.append((ours, other))
    adam = {
        "Adam alone": pairs("StableGrad + adam", "adam"),
        "clipping": pairs("StableGrad + adam", "clip + adam"),
    }
    layers = f"{listed(depths)} layers"
    return [
        Row(f"`stablegrad`, Adam, PINNs of {layers}", "pinns", adam),
        Row(
            "`stablegrad`, Muon, the same and Helmholtz and Burgers",
            "pinns",
            {"Muon alone": muon},
        ),
    ]


def of_images() -> list[Row]:
    """`stablegrad` in networks without BatchNorm, before SGD."""
    names = {
        "nothing": "nothing",
        "BatchNorm itself": "BatchNorm",
        "clip": "clipping",
        "AGC": "AGC",
    }

    def row(situation: str, file: str, base: str) -> Row:
        def of(label: str) -> Result:
            return best(file, optimizer=base, **images.METHODS[label][base])

        ours = of("StableGrad")
        return Row(
            f"`stablegrad`, {situation}",
            "images",
            {name: [(ours, of(label))] for label, name in names.items()},
            images.standard_error(file, ours.median),
        )

    fashion = "images_fashion_mnist_3_epochs"
    return [
        row("SGD, ResNet-50 without BatchNorm", "images_digits_depth_scaled", "sgd"),
        row("SGD, EfficientNetV2-S without BatchNorm", "images_efficientnet", "sgd"),
        row("SGD, Fashion-MNIST, one seed", fashion, "sgd"),
        row("Adam, Fashion-MNIST, one seed", fashion, "adam"),
    ]
