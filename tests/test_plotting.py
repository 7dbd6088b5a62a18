"""The figure of layer scales: which number is drawn where."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablegrad_optax as sg

plt = pytest.importorskip("matplotlib.pyplot")
colors = pytest.importorskip("matplotlib.colors")

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


def height(ax, row):
    """Where a row is on the canvas, whose y axis points up."""
    return ax.transData.transform((0, row))[1]


def test_rows_are_layers_and_columns_are_steps():
    ax, labels, rows = draw(HISTORY)
    assert labels == ["Dense_0", "Dense_2", "Dense_10"]
    np.testing.assert_array_equal(rows, np.stack(list(HISTORY.values())))
    assert not np.ma.getmaskarray(rows).any()
    assert list(ax.get_yticks()) == [0, 1, 2]


def test_the_input_layer_is_at_the_bottom():
    ax, labels, _ = draw(HISTORY)
    heights = [height(ax, row) for row in ax.get_yticks()]
    assert labels[0] == "Dense_0"
    assert heights == sorted(heights)
    assert heights[0] < heights[-1]


def test_layers_are_drawn_in_natural_order():
    textual = {name: HISTORY[name] for name in sorted(HISTORY)}
    assert list(textual) == ["Dense_0", "Dense_10", "Dense_2"]
    _, labels, rows = draw(textual)
    assert labels == ["Dense_0", "Dense_2", "Dense_10"]
    np.testing.assert_array_equal(rows[1], HISTORY["Dense_2"])


def test_layers_choose_and_order():
    _, labels, rows = draw(HISTORY, layers=["Dense_10", "Dense_0"])
    assert labels == ["Dense_10", "Dense_0"]
    np.testing.assert_array_equal(rows[0], HISTORY["Dense_10"])


def test_colours_are_logarithmic_over_the_data():
    ax, *_ = draw(HISTORY)
    norm = ax.collections[0].norm
    assert isinstance(norm, colors.LogNorm)
    assert (norm.vmin, norm.vmax) == (1e-6, 1e3)


def test_limits():
    ax, *_ = draw(HISTORY, limits=(1e-9, 1e9))
    norm = ax.collections[0].norm
    assert (norm.vmin, norm.vmax) == (1e-9, 1e9)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_what_has_no_logarithm_is_masked(bad):
    history = {name: scales.copy() for name, scales in HISTORY.items()}
    history["Dense_2"][1] = bad
    ax, _, rows = draw(history)
    expected = np.zeros((3, 4), bool)
    expected[1, 1] = True
    np.testing.assert_array_equal(np.ma.getmaskarray(rows), expected)
    norm = ax.collections[0].norm
    assert (norm.vmin, norm.vmax) == (1e-6, 1e3)


@pytest.mark.parametrize("value", [0.0, np.nan, 1.0])
def test_scales_all_alike_can_be_drawn(value):
    ax, _, rows = draw({"a": np.full(3, value), "b": np.full(3, value)})
    assert np.ma.getmaskarray(rows).all() == (value != 1.0)
    norm = ax.collections[0].norm
    assert 0 < norm.vmin < norm.vmax < np.inf


def test_a_stacked_layer_has_a_row_for_each_slice():
    stacked = np.geomspace(1e-6, 1.0, 12).reshape(4, 3)  # (steps, slices)
    _, labels, rows = draw(
        HISTORY | {"blocks": stacked}, layers=["Dense_0", "blocks", "Dense_2"]
    )
    assert labels == ["Dense_0", "blocks[0]", "blocks[1]", "blocks[2]", "Dense_2"]
    np.testing.assert_array_equal(rows[1:4], stacked.T)
    np.testing.assert_array_equal(rows[4], HISTORY["Dense_2"])


def test_a_list_of_dicts_is_a_dict_of_arrays():
    arrays = {
        "in": np.geomspace(1e-3, 1.0, 4),
        "blocks": np.geomspace(1e-6, 1.0, 12).reshape(4, 3),
    }
    steps = [{name: arrays[name][i] for name in arrays} for i in range(4)]
    (_, labels, rows), (_, labels_of_list, rows_of_list) = draw(arrays), draw(steps)
    assert labels == labels_of_list
    np.testing.assert_array_equal(rows, rows_of_list)


def test_history_of_a_training_loop():
    tree = {
        "first": {"kernel": jnp.array([[1.0, 5.0]])},
        "blocks": {"kernel": jnp.array([[[2.0], [4.0]], [[0.0], [8.0]]])},
    }

    def scales(factor):
        grads = jax.tree.map(lambda g: factor * g, tree)
        return sg.layer_scales(
            grads, stack_axis=lambda path, leaf: 0 if leaf.ndim == 3 else None
        )

    factors = jnp.array([1.0, 1e-3])
    _, scanned = jax.lax.scan(lambda c, x: (c, scales(x)), None, factors)
    logged = [scales(x) for x in factors]
    expected = np.array([[1.0, 1e-3], [4.0, 4e-3], [2.0, 2e-3]])
    for history in (scanned, logged):
        _, labels, rows = draw(history)
        assert labels == ["blocks[0]", "blocks[1]", "first"]
        np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_half_precision_scales():
    _, _, rows = draw([{"a": jnp.bfloat16(2), "b": jnp.bfloat16(0.5)}] * 2)
    np.testing.assert_array_equal(rows, [[2.0, 2.0], [0.5, 0.5]])


def test_columns_are_centred_on_their_steps():
    ax, *_ = draw(HISTORY, steps=[0, 100, 200, 300])
    edges = ax.collections[0].get_coordinates()[0, :, 0]
    np.testing.assert_allclose(edges, [-50, 50, 150, 250, 350])


@pytest.mark.parametrize(
    "history",
    [{"a": np.ones(1), "b": np.ones(1)}, {"a": np.array([1.0, 2.0])}],
    ids=["one step", "one layer"],
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


def test_draws_into_the_current_axes():
    ax = plt.figure().add_subplot()
    assert sg.plotting.plot_layer_scales(HISTORY) is ax


def test_draws_into_the_given_axes():
    _, (left, right) = plt.subplots(ncols=2)
    assert sg.plotting.plot_layer_scales(HISTORY, ax=left) is left
    assert not right.collections


@pytest.mark.parametrize("colorbar", [True, False])
def test_colorbar(colorbar):
    ax, *_ = draw(HISTORY, colorbar=colorbar)
    others = [other for other in ax.get_figure().axes if other is not ax]
    assert len(others) == colorbar


@pytest.mark.parametrize("history", [[], {}, [{}]], ids=repr)
def test_empty_history(history):
    with pytest.raises(ValueError, match="history is empty"):
        sg.plotting.plot_layer_scales(history)


@pytest.mark.parametrize("steps", [range(3), range(5), [[0, 1, 2, 3]]], ids=repr)
def test_steps_of_another_length(steps):
    with pytest.raises(ValueError, match="one element for each of the 4 steps"):
        sg.plotting.plot_layer_scales(HISTORY, steps=steps)


def test_unknown_layers_are_named():
    with pytest.raises(ValueError, match="not in the history: Dense_1, head"):
        sg.plotting.plot_layer_scales(HISTORY, layers=["Dense_1", "Dense_0", "head"])


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"stablegrad-optax\[plot\]"):
        sg.plotting.plot_layer_scales(HISTORY)


# --- Loss terms ---


def test_lines_are_terms_and_gaps_are_what_a_logarithm_has_not():
    history = [[1e-3, 20.0], [0.0, 3.0], [1e-4, np.nan]]
    ax = sg.plotting.plot_term_scales(
        history, terms=["boundary", "residual"], steps=[0, 50, 100]
    )
    boundary, residual = ax.get_lines()
    assert (boundary.get_label(), residual.get_label()) == ("boundary", "residual")
    np.testing.assert_array_equal(boundary.get_xdata(), [0, 50, 100])
    np.testing.assert_array_equal(boundary.get_ydata(), [1e-3, np.nan, 1e-4])
    np.testing.assert_array_equal(residual.get_ydata(), [20.0, 3.0, np.nan])
    assert ax.get_yscale() == "log"


def test_terms_recorded_in_scan_are_numbered_without_names():
    grads = {"w": jnp.array([[1.0, 1.0], [2.0, 2.0]])}
    _, history = jax.lax.scan(
        lambda _, __: (None, sg.term_scales(grads)), None, length=3
    )
    lines = sg.plotting.plot_term_scales(history).get_lines()
    assert [line.get_label() for line in lines] == ["0", "1"]
    np.testing.assert_allclose([line.get_ydata() for line in lines], [3 * [1], 3 * [2]])


@pytest.mark.parametrize(
    ("history", "options", "message"),
    [
        ([1.0, 2.0], {}, r"history must have shape \(steps, terms\) .* shape \(2,\)"),
        ([], {}, "not be empty"),
        ([[1.0, 2.0]], {"terms": ["a"]}, "terms must be 2 names, .* got 1"),
        ([[1.0, 2.0]], {"steps": [1, 2]}, "each of the 1 steps"),
    ],
)
def test_bad_histories_of_terms(history, options, message):
    with pytest.raises(ValueError, match=message):
        sg.plotting.plot_term_scales(history, **options)
