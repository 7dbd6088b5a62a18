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
) -> "Axes":
    r"""Draws the scales of all layers over the steps of training.

    One row for each layer, from the bottom, and the scale :math:`\sigma_l` as colour on
    a logarithmic axis. Zeros and what is not finite are left grey.

    Args:
      history: what :func:`~stablegrad_optax.layer_scales` returned at each step, in a
        sequence, or stacked by ``jax.lax.scan``: one dict of arrays with a leading axis
        of steps. A stacked layer takes one row for each slice.
      steps: the step of each column; default 0, 1, 2, ...
      layers: names of the layers to draw, the input layer first; default all of them
        in the order of their names and numbers.
      ax: the matplotlib Axes to draw into; default the current one.

    Returns:
      The Axes. ``ax.collections[0].set_clim(low, high)`` sets the range of the colours.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if the history is empty, or has not these layers or steps.

    Example:
      >>> history = [
      ...     {"in": 1e-3, "hidden": [1e-4, 1e-5]},
      ...     {"in": 1.0, "hidden": [1.0, 1.0]},
      ... ]
      >>> ax = plot_layer_scales(history, layers=["in", "hidden"])
      >>> print([label.get_text() for label in ax.get_yticklabels()])
      ['in', 'hidden[0]', 'hidden[1]']
    """
    labels, rows, columns = _rows(history, layers, steps)
    ax = _axes() if ax is None else ax
    mesh = ax.pcolormesh(
        _edges(columns),
        _edges(np.arange(len(labels))),
        np.ma.masked_invalid(rows),
        # Of a figure without a number to show: any.
        norm="log" if np.isfinite(rows).any() else None,
        rasterized=True,
    )
    ax.set_facecolor("lightgrey")
    ax.set_xlabel("step")
    every = -(-len(labels) // 20)  # more labels would overlap
    ax.set_yticks(range(0, len(labels), every), labels[::every])
    ax.figure.colorbar(mesh, ax=ax, label="gradient scale of the layer")
    return ax


def plot_term_scales(
    history: History,
    *,
    steps: Sequence[float] | None = None,
    terms: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws the scales of all terms of a loss over the steps of training.

    One line for each term. Zeros and what is not finite leave a gap.

    Args:
      history: what :func:`~stablegrad_optax.term_scales` returned at each step for a
        dict of terms, or the weights of :class:`~stablegrad_optax.BalanceTermsState`.
      steps, terms, ax: as ``steps``, ``layers`` and ``ax`` of
        :func:`plot_layer_scales`.

    Returns:
      The Axes.

    Raises:
      ImportError, ValueError: as :func:`plot_layer_scales`.

    Example:
      >>> history = {"boundary": [1e-3, 1e-4], "residual": [20.0, 3.0]}
      >>> ax = plot_term_scales(history)
      >>> print([line.get_label() for line in ax.get_lines()])
      ['boundary', 'residual']
    """
    labels, rows, columns = _rows(history, terms, steps)
    ax = _axes() if ax is None else ax
    ax.plot(columns, rows.T, label=labels)
    ax.set(yscale="log", xlabel="step", ylabel="gradient scale of the term")
    ax.legend()
    return ax


def _axes() -> "Axes":
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install stablegrad-optax[plot]"
        ) from error
    return plt.gca()


def _rows(
    history: History, names: Sequence[str] | None, steps: Sequence[float] | None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Labels, the scales in a row for each, NaN if not positive, and the steps."""
    if not isinstance(history, Mapping):
        keys = history[0].keys() if history else ()
        for number, step in enumerate(history):
            if step.keys() != keys:
                raise ValueError(f"step {number} of the history has other names.")
        history = {name: np.stack([step[name] for step in history]) for name in keys}
    if names is None:  # in natural order: Dense_2 before Dense_10
        names = sorted(
            history, key=lambda s: re.sub(r"\d+", lambda m: m[0].zfill(9), s)
        )
    if not names or not history:
        raise ValueError("history is empty, or there is nothing to draw.")
    missing = [name for name in names if name not in history]
    if missing:
        raise ValueError(f"not in the history: {', '.join(missing)}.")
    rows: dict[str, np.ndarray] = {}
    for name in names:
        scales = np.asarray(history[name], dtype=np.float64)
        if scales.ndim not in (1, 2) or not scales.size:
            raise ValueError(
                f"the history of {name!r} must have shape (steps,) or (steps, slices) "
                f"and not be empty, got shape {scales.shape}."
            )
        if scales.ndim == 1:
            rows[name] = scales
        else:
            rows |= {f"{name}[{i}]": row for i, row in enumerate(scales.T)}
    shown = np.stack(list(rows.values()))
    columns = np.arange(shown.shape[1]) if steps is None else np.asarray(steps)
    if columns.shape != shown[0].shape:
        raise ValueError(
            f"steps must have one element for each of the {shown.shape[1]} steps of "
            f"the history, got shape {columns.shape}."
        )
    shown[~np.isfinite(shown) | (shown <= 0)] = np.nan
    return list(rows), shown, columns


def _edges(centres: np.ndarray) -> np.ndarray:
    """The borders of cells around their centres; a single cell has width one."""
    if len(centres) == 1:
        return centres[0] + np.array([-0.5, 0.5])
    between = (centres[:-1] + centres[1:]) / 2
    first, last = 2 * centres[0] - between[0], 2 * centres[-1] - between[-1]
    return np.concatenate([[first], between, [last]])
