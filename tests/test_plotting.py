"""Figures of scales: which number is drawn where."""

import sys

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import colors

import stablegrad_optax as sg

# Three layers over four steps, from vanishing to exploding.
HISTORY = {
    "Dense_0": np.array([1e-6, 1e-5, 1e-4, 1e-3]),
    "Dense_2": np.array([1e-2, 1e-2, 1e-1, 1e-1]),
    "Dense_10": np.array([1.0, 1e1, 1e2, 1e3]),
}


@pytest.fixture(autouse=True)
def agg():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def draw(history, **options):
    """The Axes, its labels and its rows, after a pass of the renderer over them."""
    plt.figure()
    ax = sg.plotting.plot_layer_scales(history, **options)
    ax.get_figure().canvas.draw()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    (mesh,) = ax.collections
    return ax, labels, mesh.get_array()


def test_rows_are_layers_in_natural_order_from_the_bottom_and_columns_are_steps():
    textual = {name: HISTORY[name] for name in sorted(HISTORY)}
    assert list(textual) == ["Dense_0", "Dense_10", "Dense_2"]
    ax, labels, rows = draw(textual, steps=[0, 100, 200, 300])
    assert labels == ["Dense_0", "Dense_2", "Dense_10"]
    np.testing.assert_array_equal(rows, np.stack(list(HISTORY.values())))
    heights = [ax.transData.transform((0, y))[1] for y in ax.get_yticks()]
    assert heights[0] < heights[1] < heights[2]
    edges = ax.collections[0].get_coordinates()[0, :, 0]
    np.testing.assert_allclose(edges, [-50, 50, 150, 250, 350])


def test_layers_choose_and_order():
    _, labels, rows = draw(HISTORY, layers=["Dense_10", "Dense_0"])
    assert labels == ["Dense_10", "Dense_0"]
    np.testing.assert_array_equal(rows[0], HISTORY["Dense_10"])


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_what_has_no_logarithm_is_masked(bad):
    history = HISTORY | {"Dense_2": np.array([1e-2, bad, 1e-1, 1e-1])}
    ax, _, rows = draw(history)
    assert np.argwhere(np.ma.getmaskarray(rows)).tolist() == [[1, 1]]
    # The colours are logarithmic, and over what is left.
    norm = ax.collections[0].norm
    assert isinstance(norm, colors.LogNorm)
    assert (norm.vmin, norm.vmax) == (1e-6, 1e3)


@pytest.mark.parametrize("value", [0.0, np.nan, 1.0])
def test_scales_all_alike_can_be_drawn(value):
    _, labels, rows = draw({"a": np.full(3, value), "b": np.full(3, value)})
    assert labels == ["a", "b"]
    assert np.ma.getmaskarray(rows).all() == (value != 1.0)


def test_what_training_records_by_scan_or_as_a_list():
    """A stacked layer has a row for each slice."""
    scanned = {
        "first": jnp.array([2.0, 0.5], jnp.bfloat16),
        "blocks": jnp.array([[1.0, 4.0], [0.25, 1.0]]),
    }
    steps = [{name: x[i] for name, x in scanned.items()} for i in (0, 1)]
    for history in (scanned, steps):
        _, labels, rows = draw(history, layers=["first", "blocks"])
        assert labels == ["first", "blocks[0]", "blocks[1]"]
        np.testing.assert_array_equal(rows, [[2, 0.5], [1, 0.25], [4, 1]])


@pytest.mark.parametrize(
    "history", [{"a": np.ones(1), "b": np.ones(1)}, {"a": np.array([1.0, 2.0])}]
)
def test_one_step_or_layer_can_be_seen(history):
    ax, *_ = draw(history)
    corners = ax.collections[0].get_coordinates()
    assert np.ptp(corners[..., 0]) > 0
    assert np.ptp(corners[..., 1]) > 0


@pytest.mark.parametrize("number", [20, 21, 64])
def test_labels_are_thinned(number):
    history = {f"Dense_{i}": np.full(3, 10.0**-i) for i in range(number)}
    ax, labels, rows = draw(history)
    assert len(rows) == number
    positions = [int(y) for y in ax.get_yticks()]
    assert labels == [f"Dense_{y}" for y in positions]  # each beside its own row
    assert 10 <= len(labels) <= 20
    assert positions[0] == 0
    assert len(set(np.diff(positions))) == 1


def test_lines_are_the_chosen_terms_and_gaps_are_what_a_logarithm_has_not():
    history = [
        {"residual": 20.0, "boundary": 1e-3},
        {"residual": 3.0, "boundary": 0.0},
        {"residual": np.nan, "boundary": 1e-4},
    ]
    ax = sg.plotting.plot_term_scales(history, steps=[0, 50, 100])
    boundary, residual = ax.get_lines()
    assert (boundary.get_label(), residual.get_label()) == ("boundary", "residual")
    np.testing.assert_array_equal(boundary.get_xdata(), [0, 50, 100])
    np.testing.assert_array_equal(boundary.get_ydata(), [1e-3, np.nan, 1e-4])
    np.testing.assert_array_equal(residual.get_ydata(), [20.0, 3.0, np.nan])
    assert ax.get_yscale() == "log"
    ax.clear()
    (line,) = sg.plotting.plot_term_scales(history, terms=["residual"]).get_lines()
    assert line.get_label() == "residual"


@pytest.mark.parametrize(
    "plot", [sg.plotting.plot_layer_scales, sg.plotting.plot_term_scales]
)
def test_where_it_draws(plot):
    _, (left, right) = plt.subplots(ncols=2)
    assert plot(HISTORY) is right  # the current one
    assert plot(HISTORY, ax=left) is left
    colorbars = len(left.get_figure().axes) - 2
    assert colorbars == 2 * (plot is sg.plotting.plot_layer_scales)


@pytest.mark.parametrize(
    ("plot", "names"),
    [
        (sg.plotting.plot_layer_scales, "layers"),
        (sg.plotting.plot_term_scales, "terms"),
    ],
)
@pytest.mark.parametrize(
    ("history", "options", "message"),
    [
        ([], {}, "history is empty"),
        ({}, {}, "history is empty"),
        ([{}], {}, "history is empty"),
        ({"a": np.ones((0,))}, {}, "'a'.*not be empty"),
        ([{"a": 1.0}, {"b": 1.0}], {}, "step 1 of the history has other"),
        (HISTORY, {"steps": range(3)}, "one element for each of the 4 steps"),
        (HISTORY, {"steps": [[0, 1, 2, 3]]}, "one element for each of the 4 steps"),
        (HISTORY, {"names": ["x", "Dense_0", "head"]}, "not in the history: x, head"),
    ],
)
def test_bad_histories(plot, names, history, options, message):
    options = {names if name == "names" else name: v for name, v in options.items()}
    with pytest.raises(ValueError, match=message):
        plot(history, **options)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"stablegrad-optax\[plot\]"):
        sg.plotting.plot_layer_scales(HISTORY)
