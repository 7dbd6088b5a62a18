"""layer_scales and tabulate: what a user sees of the layers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stablegrad_optax as sg


def dense(fan_in, fan_out, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(scale * rng.normal(size=(fan_in, fan_out)), jnp.float32),
        "bias": jnp.asarray(scale * rng.normal(size=fan_out), jnp.float32),
    }


def std(leaf, axis=None):
    return np.std(np.asarray(leaf, np.float64), axis=axis)


@pytest.fixture
def grads():
    return {
        "Dense_0": dense(2, 16, 1e-7),
        "Dense_1": dense(16, 16, 1e2, seed=1),
        "norm": {"scale": jnp.ones(16)},
    }


def kernel_scales(grads):
    return {name: std(at["kernel"]) for name, at in grads.items() if "kernel" in at}


# --- layer_scales ---------------------------------------------------------------------


def test_layer_scales_in_jit(grads):
    scales = jax.jit(sg.layer_scales)(grads)
    assert set(scales) == {"Dense_0", "Dense_1"}  # the norm has no weight
    chex.assert_shape(list(scales.values()), ())
    chex.assert_trees_all_close(scales, kernel_scales(grads), rtol=1e-5)


@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 6), st.integers(2, 6)), min_size=1, max_size=4
    ),
    exponent=st.integers(-30, 30),
    seed=st.integers(0, 2**16),
)
def test_layer_scales_are_those_of_numpy(shapes, exponent, seed):
    rng = np.random.default_rng(seed)
    grads = {
        f"layer_{i}": {
            "w": np.float32(10.0**exponent) * rng.normal(size=shape).astype("f4")
        }
        for i, shape in enumerate(shapes)
    }
    expected = {name: std(layer["w"]) for name, layer in grads.items()}
    scales = sg.layer_scales(grads)
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


def test_statistic(grads):
    kernel = grads["Dense_1"]["kernel"] + 100.0  # std and rms differ
    scales = sg.layer_scales({"kernel": kernel}, statistic="rms")
    expected = np.sqrt(np.mean(np.asarray(kernel, np.float64) ** 2))
    chex.assert_trees_all_close(scales, {".": expected}, rtol=1e-5)


def test_a_stacked_layer_is_a_vector(grads):
    layers = [dense(8, 8, 10.0**-i, seed=i) for i in range(5)]
    stacked = {"blocks": jax.tree.map(lambda *xs: jnp.stack(xs), *layers)}
    scales = jax.jit(lambda tree: sg.layer_scales(tree, stack_axis=0))(stacked)
    chex.assert_shape(scales["blocks"], (5,))
    expected = np.stack([std(layer["kernel"]) for layer in layers])
    chex.assert_trees_all_close(scales, {"blocks": expected}, rtol=1e-5)


def test_half_precision_is_measured_in_float32(grads):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), grads)
    scales = sg.layer_scales(half)
    chex.assert_trees_all_equal_dtypes(scales, dict.fromkeys(scales, jnp.float32(0)))
    chex.assert_trees_all_close(scales, kernel_scales(half), rtol=1e-5)


@pytest.mark.skipif(not hasattr(optax, "snapshot"), reason="optax before 0.2.6")
def test_measure_of_snapshot(grads):
    tx = optax.chain(
        optax.snapshot("before", sg.layer_scales),
        sg.stablegrad(0.5),
        optax.snapshot("after", sg.layer_scales),
        optax.sgd(0.1),
    )
    factors = jnp.array([1.0, 3.0, 1e-3])

    def step(state, factor):
        _, state = tx.update(jax.tree.map(lambda g: factor * g, grads), state)
        return state, [optax.tree_utils.tree_get(state, k) for k in ("before", "after")]

    # A scan: the state of init and that of update must be of one structure and dtype.
    run = jax.jit(lambda: jax.lax.scan(step, tx.init(grads), factors))
    _, (before, after) = run()
    expected = {k: v * np.asarray(factors) for k, v in kernel_scales(grads).items()}
    chex.assert_trees_all_close(before, expected, rtol=1e-5)
    chex.assert_trees_all_close(
        after, dict.fromkeys(after, jnp.full(3, 0.5)), rtol=1e-5
    )
    assert set(before) == set(after) == {"Dense_0", "Dense_1"}


@pytest.mark.skipif(not hasattr(optax, "monitor"), reason="optax before 0.2.7")
def test_measure_of_monitor(grads):
    tx = optax.monitor({"scales": sg.layer_scales})
    _, state = jax.jit(tx.update)(grads, tx.init(grads))
    scales = optax.tree_utils.tree_get(state, "scales")
    chex.assert_trees_all_close(scales, kernel_scales(grads), rtol=1e-5)


# --- tabulate -------------------------------------------------------------------------


def layer_column(table):
    """The elements of the first column, without header and summary."""
    lines = table.splitlines()[1:-1]
    width = table.splitlines()[0].index("leaf")
    return [cell for line in lines if (cell := line[:width].strip())]


def test_tabulate():
    params = {
        "first": dense(2, 16),
        "norm": {"scale": jnp.ones(16)},
        "blocks": {
            "kernel": jnp.ones((3, 16, 16), jnp.bfloat16),
            "step": jnp.arange(3),
        },
        "temperature": jnp.ones(()),
    }
    table = sg.tabulate(
        params, stack_axis=lambda path, leaf: 0 if leaf.ndim == 3 else None
    )
    assert table.splitlines() == [
        "layer   leaf         shape    dtype     role",
        "blocks  kernel       3x16x16  bfloat16  weight, 3 slices on axis 0",
        "first   bias         16       float32   scaled",
        "        kernel       2x16     float32   weight",
        "norm    scale        16       float32   unchanged",
        ".       temperature  scalar   float32   unchanged",
        "6 layers, 4 with weights; 833 elements; 1 leaf of other dtypes unchanged",
    ]


def test_tabulate_needs_shapes_only(grads):
    shapes = jax.eval_shape(lambda: grads)
    assert isinstance(jax.tree.leaves(shapes)[0], jax.ShapeDtypeStruct)
    assert sg.tabulate(shapes) == sg.tabulate(grads)


def test_layers_alike_are_folded():
    table = sg.tabulate({f"Dense_{i}": dense(8, 8) for i in range(64)})
    assert layer_column(table) == ["Dense_0 ... Dense_63 (64)"]
    assert len(table.splitlines()) == 4  # header, bias, kernel, summary
    assert table.endswith("64 layers, 64 with weights; 4,608 elements")


def test_arrays_alike_in_a_list_are_folded():
    table = sg.tabulate([jnp.ones((8, 8)), jnp.ones(8)] * 32)
    assert layer_column(table) == ["0, 2 ... 62 (32)"]


def test_layers_that_differ_are_not_folded():
    different = {
        "Dense_0": dense(2, 8),
        "Dense_1": dense(8, 8),
        "Dense_2": dense(8, 8),
        "Dense_3": {"kernel": jnp.ones((8, 8))},
        "Dense_4": {"kernel": jnp.ones((8, 8), jnp.bfloat16)},
    }
    assert layer_column(sg.tabulate(different)) == [
        "Dense_0",
        "Dense_1 ... Dense_2 (2)",
        "Dense_3",
        "Dense_4",
    ]


def test_a_folded_run_is_named_in_natural_order():
    # A dict is flattened in textual order: Dense_0, Dense_1, Dense_10, ..., Dense_2.
    params = {f"Dense_{i}": dense(8, 8) for i in range(12)}
    assert layer_column(sg.tabulate(params)) == ["Dense_0 ... Dense_11 (12)"]


@pytest.mark.parametrize("depth", [12, 64])
def test_natural_order_where_the_ends_differ(depth):
    widths = [2, *[8] * (depth - 1), 1]
    params = {f"Dense_{i}": dense(widths[i], widths[i + 1]) for i in range(depth)}
    assert layer_column(sg.tabulate(params)) == [
        "Dense_0",
        f"Dense_1 ... Dense_{depth - 2} ({depth - 2})",
        f"Dense_{depth - 1}",
    ]


def test_grouping_options_change_the_table(grads):
    assert layer_column(sg.tabulate(grads, group_by="tree")) == ["."]
    everything = sg.tabulate(grads, is_weight=lambda path, leaf: True)
    assert everything.endswith("3 layers, 3 with weights; 336 elements")


def test_an_empty_tree():
    assert sg.tabulate({}).endswith("0 layers, 0 with weights; 0 elements")


@pytest.mark.parametrize("function", [sg.tabulate, sg.layer_scales])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "mad"}, "statistic.*'mad'"),
        ({"group_by": "module"}, "group_by.*'module'"),
        ({"group_by": lambda path: []}, "hashable.*'Dense_0/bias'"),
        ({"stack_axis": 1}, "stack_axis 1 .*'Dense_0/bias'"),
    ],
    ids=["statistic", "group_by", "unhashable", "stack_axis"],
)
def test_bad_options(grads, function, options, message):
    with pytest.raises(ValueError, match=message):
        function(grads, **options)


def test_two_layers_in_steps_of_two_are_named_both():
    layer = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    table = sg.tabulate({"2": layer, "4": layer})
    assert table.splitlines()[1].startswith("2, 4 (2) ")
