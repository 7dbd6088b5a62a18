"""Figures of scales. Needs matplotlib: `pip install stablegrad-optax[plot]`."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

History = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def plot_layer_scales(
    history: History,
    *,
    steps: Sequence[float] | None = None,
    layers: Sequence[str] | None = None,
    ax: "Axes | None" = None,
    limits: tuple[float, float] | None = None,
    colorbar: bool = True,
) -> "Axes":
    r"""Draws the scales of all layers over the steps of training.

    One row for each layer, the input layer at the bottom, one column for each step, and
    the scale :math:`\sigma_l` as colour on a logarithmic axis. Zeros and what is not
    finite are left grey.

    Args:
      history: what :func:`~stablegrad_optax.layer_scales` returned at each step: a
        sequence of its dicts, or one dict of arrays with a leading axis of steps, as
        ``jax.lax.scan`` stacks them. A stacked layer takes one row for each slice.
      steps: the step of each column; default 0, 1, 2, ...
      layers: names of the layers to draw, the input layer first. Default: all of them,
        by name, numbers in numerical order.
      ax: the matplotlib Axes to draw into; default the current one.
      limits: the lowest and the highest scale of the colours, for figures that are to
        be compared; default those of the data.
      colorbar: whether to draw a colour bar.

    Returns:
      The Axes.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if the history is empty, layers are not in it, or the number of steps
        is not that of the history.

    Example:
      >>> import matplotlib
      >>> matplotlib.use("agg")
      >>> history = [
      ...     {"in": 1e-3, "hidden": [1e-4, 1e-5]},
      ...     {"in": 1.0, "hidden": [1.0, 1.0]},
      ... ]
      >>> ax = plot_layer_scales(history, layers=["in", "hidden"])
      >>> print([label.get_text() for label in ax.get_yticklabels()])
      ['in', 'hidden[0]', 'hidden[1]']
    """
    matplotlib = _matplotlib("plot_layer_scales")
    labels, rows = _rows(history, layers)
    columns = _checked_steps(steps, rows.shape[1])
    ax = matplotlib.pyplot.gca() if ax is None else ax
    shown = np.ma.masked_where(~np.isfinite(rows) | (rows <= 0), rows)
    mesh = ax.pcolormesh(
        _edges(columns),
        _edges(np.arange(len(labels))),
        shown,
        norm=matplotlib.colors.LogNorm(*(limits or _limits(shown))),
        cmap="viridis",
        rasterized=True,
    )
    ax.set_facecolor("lightgrey")
    ax.set_xlabel("step")
    every = -(-len(labels) // 20)  # more labels would overlap
    ax.set_yticks(range(0, len(labels), every), labels[::every])
    if colorbar:
        ax.get_figure().colorbar(mesh, ax=ax, label="gradient scale of the layer")
    return ax


def plot_term_scales(
    history: History,
    *,
    steps: Sequence[float] | None = None,
    terms: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws the scales of all terms of a loss over the steps of training.

    One line for each term, on a logarithmic axis. The factor between two lines is the
    loss weight that would bring the terms to one scale at that step. Zeros and what is
    not finite leave a gap.

    Args:
      history: what :func:`~stablegrad_optax.term_scales` returned at each step for a
        dict of terms: a sequence of dicts, or one dict of arrays with a leading axis of
        steps. The weights of :class:`~stablegrad_optax.BalanceTermsState` will do, too.
      steps: the step of each value; default 0, 1, 2, ...
      terms: names of the terms to draw; default all of them.
      ax: the matplotlib Axes to draw into; default the current one.

    Returns:
      The Axes.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if the history is empty, terms are not in it, or the number of steps
        is not that of the history.

    Example:
      >>> import matplotlib
      >>> matplotlib.use("agg")
      >>> history = {"boundary": [1e-3, 1e-4], "residual": [20.0, 3.0]}
      >>> ax = plot_term_scales(history)
      >>> print([line.get_label() for line in ax.get_lines()])
      ['boundary', 'residual']
    """
    matplotlib = _matplotlib("plot_term_scales")
    labels, rows = _rows(history, terms)
    columns = _checked_steps(steps, rows.shape[1])
    ax = matplotlib.pyplot.gca() if ax is None else ax
    shown = np.where(np.isfinite(rows) & (rows > 0), rows, np.nan)
    for name, line in zip(labels, shown, strict=True):
        ax.plot(columns, line, label=name)
    ax.set(yscale="log", xlabel="step", ylabel="gradient scale of the term")
    ax.legend()
    return ax


def _matplotlib(function: str) -> Any:
    try:
        import matplotlib.colors
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError(
            f"{function} needs matplotlib: pip install stablegrad-optax[plot]"
        ) from error
    return matplotlib


def _rows(
    history: History, names: Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    """A label for each row, and the rows of scales, one column for each step."""
    if not isinstance(history, Mapping):
        history = _stack(history)
    names = sorted(history, key=_natural_order) if names is None else names
    if not names or not history:
        raise ValueError("history is empty, or there is nothing to draw.")
    missing = [name for name in names if name not in history]
    if missing:
        raise ValueError(f"not in the history: {', '.join(missing)}.")
    labels: list[str] = []
    rows: list[np.ndarray] = []
    for name in names:
        scales = np.asarray(history[name], dtype=np.float64)
        if scales.ndim not in (1, 2) or not scales.size:
            raise ValueError(
                f"the history of {name!r} must have shape (steps,) or (steps, slices) "
                f"and not be empty, got shape {scales.shape}."
            )
        slices = (
            [""] if scales.ndim == 1 else [f"[{i}]" for i in range(scales.shape[1])]
        )
        labels.extend(name + index for index in slices)
        rows.extend(scales.reshape(len(scales), -1).T)
    return labels, np.stack(rows)


def _stack(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    for number, step in enumerate(history):
        if step.keys() != history[0].keys():
            raise ValueError(f"step {number} of the history has other names than 0.")
    names = history[0] if history else ()
    return {name: np.stack([step[name] for step in history]) for name in names}


def _natural_order(name: str) -> list[tuple[str, int]]:
    """A sort key that puts Dense_2 before Dense_10."""
    return [
        (text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)
    ]


def _checked_steps(steps: Sequence[float] | None, number: int) -> np.ndarray:
    columns = np.arange(number) if steps is None else np.asarray(steps)
    if columns.shape != (number,):
        raise ValueError(
            f"steps must have one element for each of the {number} steps of the "
            f"history, got shape {columns.shape}."
        )
    return columns


def _edges(centres: np.ndarray) -> np.ndarray:
    """The borders of cells around their centres; a single cell has width one."""
    if len(centres) == 1:
        return centres[0] + np.array([-0.5, 0.5])
    between = (centres[:-1] + centres[1:]) / 2
    first, last = 2 * centres[0] - between[0], 2 * centres[-1] - between[-1]
    return np.concatenate([[first], between, [last]])


def _limits(shown: np.ma.MaskedArray) -> tuple[float, float]:
    if not shown.count():
        return 0.1, 1.0
    low, high = float(shown.min()), float(shown.max())
    return (low, high) if low < high else (low / 2, high * 2)
