"""What the expressions on the pages may call."""

from collections.abc import Iterable
from typing import Any

from docs.results.costs import (
    derivatives,
    image_steps,
    largest_error,
    overhead,
    results_of,
    system_steps,
    term_steps,
)
from docs.results.images import (
    digits,
    digits_variance_preserving,
    efficientnet,
    efficientnet_variance_preserving,
    fashion_mnist,
    resnet101,
)
from docs.results.pinns import (
    burgers,
    helmholtz,
    inverse,
    method,
    pinn_depth,
    pinn_rates,
    pinn_seeds,
    problems,
    what_goes_with_muon,
)
from docs.results.records import best
from docs.results.tables import median, number
from docs.results.terms import (
    best_weights,
    demo,
    longer_runs,
    loss_terms,
    over_best_weight,
    over_weight_1,
    variants,
    weights,
)
from docs.results.verdicts import where_it_wins


def score(file: str, label: str = "", rate: float | None = None, **wanted: Any) -> str:
    """The median over the seeds of a method such as "clip + adam".

    It is that at the best rate unless another is given. Further settings tell the runs
    from others in the file.
    """
    of_method = method(label) if label else {}
    result = best(file, **of_method, **wanted)
    return median(result if rate is None else result.at(rate))


def least(values: Iterable[float], figures: int = 2) -> str:
    """The smallest of several numbers, with so many digits."""
    return number(min(values), figures)


def most(values: Iterable[float], figures: int = 2) -> str:
    """The largest of several numbers, with so many digits."""
    return number(max(values), figures)


NAMES = {
    function.__name__: function
    for function in (
        *(best_weights, burgers, demo, derivatives, digits, digits_variance_preserving),
        *(efficientnet, efficientnet_variance_preserving, fashion_mnist, helmholtz),
        *(image_steps, inverse, largest_error, least, longer_runs, loss_terms, most),
        *(over_best_weight, over_weight_1, overhead, pinn_depth, pinn_rates),
        *(pinn_seeds, problems, resnet101, results_of, score, system_steps, term_steps),
        *(variants, weights, what_goes_with_muon, where_it_wins),
    )
}
