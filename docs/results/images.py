"""Tables of image classifiers: accuracies by method and optimizer."""

from collections.abc import Mapping

import numpy as np

from docs.results.records import (
    Result,
    ResultError,
    Settings,
    best,
    content,
    is_in,
)
from docs.results.tables import (
    listed,
    median,
    seeds,
    table,
    train_command,
    with_source,
)
from examples.image_classification.config import Config

Methods = Mapping[str, Mapping[str, Settings]]
"""For each row the settings by base optimizer."""


def with_control(control: str) -> Settings:
    return {"norm": "none", "scale_control": control}


BATCH_NORM: Settings = {"norm": "batch", "scale_control": "none"}
PAPER = "stablegrad-prediction"
REFERENCE = {"sgd": PAPER, "adam": "stablegrad"}
"""StableGrad before SGD has the paper's reference, and 1 before Adam."""
METHODS: Methods = {
    "BatchNorm itself": dict.fromkeys(REFERENCE, BATCH_NORM),
    "nothing": dict.fromkeys(REFERENCE, with_control("none")),
    "clip": dict.fromkeys(REFERENCE, with_control("clip")),
    "AGC": dict.fromkeys(REFERENCE, with_control("agc")),
    "StableGrad": {base: with_control(name) for base, name in REFERENCE.items()},
}
BOTH_REFERENCES: Methods = {
    **{label: methods for label, methods in METHODS.items() if label != "StableGrad"},
    "StableGrad, the paper's reference": dict.fromkeys(REFERENCE, with_control(PAPER)),
    "StableGrad, a reference of 1": dict.fromkeys(
        REFERENCE, with_control("stablegrad")
    ),
}


def accuracies(file: str, methods: Methods, command: str) -> str:
    """Median, best rate and seeds of each method with each base optimizer."""
    found = {
        label: [
            best(file, optimizer=base, **wanted)
            if is_in(file, optimizer=base, **wanted)
            else None
            for base, wanted in by_base.items()
        ]
        for label, by_base in methods.items()
    }
    results = [r for row in found.values() for r in row if r is not None]
    several = max(len(r.scores) for r in results) > 1
    header = ["instead of BatchNorm"]
    for base in REFERENCE:
        header += [base, "rate", "seeds"] if several else [base, "rate"]
    cells = [
        [label, *(cell for r in row for cell in _cells(r, several))]
        for label, row in found.items()
    ]
    return with_source(
        table(header, cells),
        [file],
        command,
        setting(file, results),
    )


def _cells(result: Result | None, several: bool) -> list[str]:
    if result is None:
        return ["not run", "", ""][: 3 if several else 2]
    cells = [median(result), f"{result.rate:g}"]
    return [*cells, seeds(result)] if several else cells


def setting(file: str, results: list[Result]) -> str:
    """Network, budget, rates, seeds and images, in words."""
    s, data = content(file)["settings"], content(file)["data"]
    steps = data["training_images"] // s["batch_size"]
    rates = []
    for base in REFERENCE:
        tried = {x for r in results if r.settings["optimizer"] == base for x in r.rates}
        if tried:
            rates.append(f"{listed(sorted(tried))} for {base}")
    seed_counts = sorted({len(r.scores) for r in results})
    most = seed_counts[-1]
    error = standard_error(file, float(np.median([r.median for r in results])))
    return (
        f"{NETWORKS[s['model']]} of {s['width_multiplier']:g} times the published "
        f"width, {s['initialization']} weights; {s['epochs']} epochs of {steps} steps "
        f"of {s['batch_size']} images; rates {' and '.join(rates)}; {most} "
        f"seed{'s' if most > 1 else ''}; {data['test_images']:,} test images, so that "
        f"two standard errors are {2 * error:.3f}."
    )


def standard_error(file: str, accuracy: float) -> float:
    """That of an accuracy on the test images of a file."""
    images = content(file)["data"]["test_images"]
    return float(np.sqrt(accuracy * (1 - accuracy) / images))


NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "efficientnetv2-s": "EfficientNetV2-S",
}


def study(options: str) -> str:
    """The command of a study, which has more rates and seeds than some of the runs."""
    return (
        f"`python -m examples.image_classification study {options}` with these rates "
        "and seeds"
    )


def digits() -> str:
    """ResNet-50 with branches that are scaled by depth."""
    command = study("digits --initialization depth-scaled")
    return accuracies("images_digits_depth_scaled", METHODS, command)


def digits_variance_preserving() -> str:
    """ResNet-50 with branches as large as their shortcuts."""
    return accuracies("images_digits", BOTH_REFERENCES, study("digits"))


def resnet101() -> str:
    rows = ("BatchNorm itself", "StableGrad")
    methods = {label: METHODS[label] for label in rows}
    command = study('depth --only "resnet101-.*-lr"')
    return accuracies("images_resnet101", methods, command)


def efficientnet() -> str:
    return accuracies("images_efficientnet", METHODS, study("efficientnet"))


def efficientnet_variance_preserving() -> str:
    file = "images_efficientnet_variance_preserving"
    example = best(file, optimizer="sgd", **with_control(PAPER))
    # The study has no stochastic depth.
    command = train_command("examples.image_classification", Config, example)
    return accuracies(file, METHODS, f"commands such as {command}")


def fashion_mnist() -> str:
    """Three epochs at the best rate of one, and the accuracy after that one."""
    file, short = "images_fashion_mnist_3_epochs", "images_fashion_mnist"
    header, cells, tried = ["instead of BatchNorm"], [], []
    for base in REFERENCE:
        header += [base, "rate", "after one epoch"]
    for label, by_base in METHODS.items():
        row = [label]
        for base, wanted in by_base.items():
            result = best(file, optimizer=base, **wanted)
            tried.append(best(short, optimizer=base, **wanted).at(result.rate))
            row += [median(result), f"{result.rate:g}", median(tried[-1])]
        cells.append(row)
    command = study("fashion-mnist") + " and options as below"
    return with_source(
        table(header, cells), [file, short], command, setting(file, tried)
    )


def remove_batchnorm() -> str:
    """Accuracy over the learning rate, the best one of each row in bold."""
    record = content("remove_batchnorm")
    rates = record["settings"]["rates"]
    cells = []
    for method in dict.fromkeys(run["method"] for run in record["runs"]):
        medians = [np.median(_replaced(method, rate)) for rate in rates]
        highest = max(medians)
        bold = [f"**{x:.3f}**" if x == highest else f"{x:.3f}" for x in medians]
        cells.append([method, *bold])
    return with_source(
        table(["rate", *(f"{rate:g}" for rate in rates)], cells),
        ["remove_batchnorm"],
        "`python -m benchmarks.remove_batchnorm`",
        f"Medians of {record['settings']['seeds']} seeds, "
        f"{record['settings']['epochs']} epochs.",
    )


def lowest_of(method: str, rate: float) -> str:
    """The lowest accuracy of the seeds of a method in that table."""
    return f"{min(_replaced(method, rate)):.2f}"


def _replaced(method: str, rate: float) -> list[float]:
    """The accuracies of the seeds in that table."""
    for run in content("remove_batchnorm")["runs"]:
        if (run["method"], run["rate"]) == (method, rate):
            return list(run["accuracies"])
    raise ResultError(f"no run of {method} at a rate of {rate:g}")
