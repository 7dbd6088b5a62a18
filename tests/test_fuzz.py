"""Any tree, any options, any value: StableGrad against its definition in float64.

Operations run one by one (`jax.disable_jit`), so that an example costs no compilation;
fewer examples are jitted as well. `HYPOTHESIS_PROFILE=long` runs 2,000.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import strategies
from hypothesis import assume, event, example, given
from hypothesis import strategies as st
from strategies import dtype_of, is_inexact

import stablegrad_optax as sg
from stablegrad_optax import _layers, _scale

examples = hypothesis.settings(
    max_examples=max(30, hypothesis.settings.default.max_examples),
    # A few are slow: the first of a shape, which compiles its operations.
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# Each of these compiles a program.
jitted_examples = hypothesis.settings(
    examples, max_examples=examples.max_examples // 10
)


@pytest.fixture(autouse=True, scope="module")
def operations_one_by_one():
    with jax.disable_jit():
        yield


# --- Options --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Named:
    """A function with a name to show in a counterexample."""

    name: str
    function: Callable[..., Any] = dataclasses.field(repr=False)

    def __call__(self, *arguments):
        return self.function(*arguments)


def one_of(**functions):
    return st.sampled_from([Named(name, f) for name, f in functions.items()])


group_by = st.sampled_from(_layers.GROUPINGS) | one_of(
    depth=lambda path: len(path),
    first_key=lambda path: path[:1],
    last_key=lambda path: str(path[-1]) if path else None,
    one_group=lambda path: 0,
)
is_weight = st.none() | one_of(
    all=lambda path, leaf: True,
    none=lambda path, leaf: False,
    vectors=lambda path, leaf: np.ndim(leaf) == 1,
    odd_depth=lambda path, leaf: np.bool_(len(path) % 2),
)


def where_of_length(axis, length):
    """Stacks leaves on the axis where that has the length: all in a layer agree."""

    def stack_axis(path, leaf):
        fits = -np.ndim(leaf) <= axis < np.ndim(leaf)
        return axis if fits and np.shape(leaf)[axis] == length else None

    return Named(f"axis {axis} of length {length}", stack_axis)


fitting_stack_axis = st.none() | st.builds(
    where_of_length, st.sampled_from([0, 1, -1, np.int64(-1)]), st.integers(0, 3)
)
any_stack_axis = st.integers(-2, 3) | one_of(beyond=lambda path, leaf: np.ndim(leaf))


@st.composite
def groupings(draw, stack_axis=fitting_stack_axis):
    return {
        "group_by": draw(group_by),
        "statistic": draw(st.sampled_from(_scale.STATISTICS)),
        "is_weight": draw(is_weight),
        "stack_axis": draw(stack_axis),
    }


references = st.sampled_from([1, 0.0, 1e-36, 1e-6, 0.5, 1e6, np.float32(1e30)])
max_gains = st.none() | st.sampled_from([1e-30, 1e-3, 1.0, np.float32(10), 1e30])

# Layers with more elements are measured in one pass: all of them, in some examples.
sizes_of_small_layers = st.sampled_from([_scale._SMALL_LAYER, 0])


def one_pass_above(size):
    return mock.patch.object(_scale, "_SMALL_LAYER", size)


def update(grads, reference=1.0, max_gain=None, **grouping):
    tx = sg.stablegrad(max_gain=max_gain, **grouping)
    # A library must not promote its users' dtypes behind their backs.
    with jax.numpy_dtype_promotion("strict"):
        return tx.update(grads, tx.init(grads), reference=reference)[0]


# --- Layers, and their scale by definition --------------------------------------------

TINY = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)

ROUNDING = {"float32": 2e-5, "complex64": 2e-5, "bfloat16": 1e-2, "float16": 2e-3}


@dataclasses.dataclass(frozen=True)
class Piece:
    """A layer that has weights, or one slice of it if it is stacked."""

    members: tuple[_layers.Leaf, ...]
    before: list[np.ndarray]  # of each member
    after: list[np.ndarray]
    scale: float  # as layer_scales measures it before
    new_scale: float  # and after

    def weights(self, values):
        """All elements of the weights in `values`, as float64 or complex128."""
        pairs = zip(self.members, values, strict=True)
        return np.concatenate([wide(x).ravel() for leaf, x in pairs if leaf.is_weight])


def wide(leaf):
    leaf = np.asarray(leaf)
    return leaf.astype(complex if np.iscomplexobj(leaf) else float)


def find_layers(tree, grouping):
    options = {name: grouping[name] for name in grouping if name != "statistic"}
    return _layers.find_layers(tree, **options)


def assume_clear(tree, grouping):
    """Not a flat sequence whose layers cannot be told, which is an error."""
    try:
        find_layers(tree, grouping)
    except ValueError as error:
        assume("must alternate" not in str(error))
        raise


def pieces(updates, grads, grouping):
    """What has a scale of its own."""
    scales = sg.layer_scales(grads, **grouping)
    new_scales = sg.layer_scales(updates, **grouping)
    layers = [layer for layer in find_layers(grads, grouping) if layer.weights]
    assert [(layer.name, layer.length) for layer in layers] == [
        (name, scale.size if scale.ndim else None) for name, scale in scales.items()
    ]
    for layer in layers:

        def part(tree, i, layer=layer):
            leaves = jax.tree.leaves(tree)
            values = [np.asarray(leaves[leaf.index]) for leaf in layer.members]
            axes = [leaf.stack_axis for leaf in layer.members]
            return [
                x if axis is None else x.take(i, axis)
                for x, axis in zip(values, axes, strict=True)
            ]

        both = zip(
            np.ravel(scales[layer.name]), np.ravel(new_scales[layer.name]), strict=True
        )
        for i, measured in enumerate(both):
            yield Piece(layer.members, part(grads, i), part(updates, i), *measured)


def scale_by_definition(elements, statistic):
    """The scale, and whether float32 leaves no doubt of it.

    It does where the scale or its inverse is subnormal, which devices may take for
    zero.
    """
    rms = math.sqrt((abs(elements) ** 2).mean())
    if statistic == "rms" or elements.size == 1:
        scale = rms
    else:
        scale = max(elements.std(), rms / 16)
    return scale, rms == 0 or (scale > 1e-36 and rms < 0.99 / TINY)


def assert_definition(piece, statistic, reference, max_gain):
    """Finite; gain = ρ/σ, at most the maximum, for all members; elements saturate."""
    for value in piece.after:
        assert np.isfinite(wide(value)).all()
    elements = piece.weights(piece.before)
    scale, is_clear = scale_by_definition(elements, statistic)
    if not is_clear:
        return
    # At the floor, std² is 1/256 of the mean square from which it is taken.
    rounding = 2e-5 if scale**2 > 0.1 * (abs(elements) ** 2).mean() else 1e-3
    np.testing.assert_allclose(piece.scale, scale, rtol=rounding)
    if scale == 0:
        gain = reference = 1.0
    else:
        gain = min(reference / scale, math.inf if max_gain is None else max_gain)
    for before, after in zip(piece.before, piece.after, strict=True):
        info = jnp.finfo(after.dtype)
        largest = float(info.max)
        # Devices may take subnormal numbers for zero: what comes in, what is between
        # the factors of the gain, and what goes out.
        lost = TINY * (gain + 100 * max(1, reference)) + float(info.tiny)
        for part in (np.real, np.imag):
            x, got = wide(part(before)), wide(part(after))
            # Beyond, the first factor of the gain saturates an element of a bias.
            is_clear = abs(x) < 0.01 * LARGEST * scale if scale else np.isfinite(x)
            np.testing.assert_allclose(
                got[is_clear],
                np.clip(gain * x, -largest, largest)[is_clear],
                rtol=max(rounding, ROUNDING[after.dtype.name]),
                atol=lost,
            )
    is_float32 = all(
        leaf.dtype == np.float32 for leaf in piece.members if leaf.is_weight
    )
    if is_float32 and scale > 0 and gain == reference / scale and reference > 1e-30:
        np.testing.assert_allclose(piece.new_scale, reference, rtol=2 * rounding)
        assert abs(piece.weights(piece.after)).max() <= (
            17.02 * reference * math.sqrt(elements.size)
        )


# --- What fuzzing has found: the ends of float32's range, and odd options -------------


DEFAULTS = {
    "group_by": "layer",
    "statistic": "std",
    "is_weight": None,
    "stack_axis": None,
}
SMALL_BESIDE_ITS_BIAS = {"kernel": [[1e-10, 3e-10]], "bias": [3e38, 1.0]}


@pytest.mark.parametrize(
    ("grads", "reference", "max_gain"),
    [
        pytest.param([[2e38, -2e38]], 1.0, None, id="NaN where 1/scale is subnormal"),
        pytest.param(
            [[3e38 + 3e38j, 0]],
            1.0,
            None,
            id="NaN where abs(real) + abs(imag) overflows",
        ),
        pytest.param(
            [[1.0, 3.0]], 1e30, 1e-30, id="NaN where reference/max_gain overflows"
        ),
        pytest.param(
            SMALL_BESIDE_ITS_BIAS,
            0.0,
            None,
            id="NaN where bias/scale overflows and the reference is zero",
        ),
    ],
)
def test_found_by_fuzzing(grads, reference, max_gain):
    grads = jax.tree.map(jnp.asarray, grads, is_leaf=lambda x: isinstance(x, list))
    updates = update(grads, reference, max_gain)
    for piece in pieces(updates, grads, DEFAULTS):
        assert_definition(piece, "std", reference, max_gain)


def test_a_scheduled_max_gain_may_start_at_zero():
    grads = jnp.array([[1.0, 3.0]])
    with jax.disable_jit(False):
        updates = jax.jit(lambda bound: update(grads, max_gain=bound))(0.0)
    np.testing.assert_array_equal(updates, jnp.zeros_like(grads))


def test_the_table_counts_no_layer_in_a_stack_of_no_slices():
    table = sg.tabulate({"blocks": jnp.zeros((0, 2, 3))}, stack_axis=0)
    assert table.splitlines()[-1] == "0 layers, 0 with weights; 0 elements"


# --- Properties -----------------------------------------------------------------------


ZERO_BESIDE_ITS_BIAS = {"kernel": np.zeros((2, 3), np.float32), "bias": 2.0}
WITHOUT_SQUARES = np.array([[1e-25, -3e-25]], np.float32)


@examples
@given(strategies.trees(), groupings(), references, max_gains, sizes_of_small_layers)
@example(ZERO_BESIDE_ITS_BIAS, DEFAULTS, 0.5, None, 0)
@example(WITHOUT_SQUARES, DEFAULTS, 1.0, None, 0)
@example(WITHOUT_SQUARES, DEFAULTS | {"statistic": "rms"}, 1.0, None, 0)
def test_finite_gradients(grads, grouping, reference, max_gain, small):
    assume_clear(grads, grouping)
    with one_pass_above(small):
        updates = update(grads, reference, max_gain, **grouping)
        check(updates, grads, grouping, reference, max_gain)


@jitted_examples
@given(strategies.trees(), groupings(), references, max_gains, sizes_of_small_layers)
def test_finite_gradients_under_jit(grads, grouping, reference, max_gain, small):
    assume_clear(grads, grouping)
    leaves, treedef = jax.tree.flatten(grads)
    floats = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]

    def merged(values):
        values = dict(zip(floats, values, strict=True))
        return treedef.unflatten([values.get(i, x) for i, x in enumerate(leaves)])

    @jax.jit
    def update_floats(values):  # float0 is no argument of a jitted function
        updates = update(merged(values), reference, max_gain, **grouping)
        return [jax.tree.leaves(updates)[i] for i in floats]

    with one_pass_above(small):
        with jax.disable_jit(False):
            updates = merged(update_floats([leaves[i] for i in floats]))
        check(updates, grads, grouping, reference, max_gain)


def check(updates, grads, grouping, reference, max_gain):
    """Structure, shapes, dtypes, what passes unchanged, and the definition."""
    assert jax.tree.structure(updates) == jax.tree.structure(grads)
    pairs = list(zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True))
    for got, leaf in pairs:
        assert np.shape(got) == np.shape(leaf)
        assert dtype_of(got) == dtype_of(leaf)
    layers = find_layers(grads, grouping)
    if grouping["group_by"] == "tree":
        assert len(layers) <= 1
    elif grouping["group_by"] == "leaf":
        assert all(len(layer.members) == 1 for layer in layers)
    scaled = {leaf.index for la in layers if la.weights for leaf in la.members}
    for index, (got, leaf) in enumerate(pairs):
        if index not in scaled:
            np.testing.assert_array_equal(got, leaf)
    for piece in pieces(updates, grads, grouping):
        limit = None if max_gain is None else float(max_gain)
        rule = grouping["statistic"], float(reference), limit
        assert_definition(piece, *rule)


@examples
@given(strategies.trees(), groupings())
def test_the_table_holds_the_layers(tree, grouping):
    """tabulate counts the slices that layer_scales measures, and every leaf."""
    assume_clear(tree, grouping)
    table = sg.tabulate(tree, **grouping)
    leaves = jax.tree.leaves(tree)
    floats = [leaf for leaf in leaves if is_inexact(leaf)]
    layers = find_layers(tree, grouping)
    scales = sg.layer_scales(tree, **grouping)
    counts = [
        sum(1 if layer.length is None else layer.length for layer in layers),
        sum(scale.size for scale in scales.values()),
        sum(map(np.size, floats)),
        len(leaves) - len(floats),
    ]
    summary = table.splitlines()[-1]
    numbers = [int(n) for n in re.findall(r"\d+", summary.replace(",", ""))]
    assert numbers == (counts if counts[-1] else counts[:-1])
    for name in scales:
        assert name in table or "..." in table  # or folded into a run
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), dtype_of(x)), tree
    )
    assert sg.tabulate(shapes, **grouping) == table


@examples
@given(
    strategies.networks(),
    st.sampled_from(strategies.CONVENTIONS),
    st.sampled_from(_scale.STATISTICS),
)
def test_every_convention_has_the_same_layers(layers, convention, statistic):
    """A network's update, whatever its tree, is that of its layers one by one."""
    updates = update(convention(layers), statistic=statistic)
    one_by_one = [update(layer, statistic=statistic) for layer in layers]
    chex.assert_trees_all_equal(updates, convention(one_by_one))


@examples
@given(
    strategies.trees(),
    groupings(),
    sizes_of_small_layers,
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.data(),
)
def test_what_is_not_finite_stays_in_its_layer(grads, grouping, small, bad, data):
    assume_clear(grads, grouping)
    leaves, treedef = jax.tree.flatten(grads)
    floats = [i for i, x in enumerate(leaves) if is_inexact(x) and np.size(x)]
    assume(floats)
    index = data.draw(st.sampled_from(floats), "leaf")
    poisoned = np.array(leaves[index], dtype_of(leaves[index]))
    poisoned.flat[data.draw(st.integers(0, poisoned.size - 1), "element")] = bad
    broken = treedef.unflatten([*leaves[:index], poisoned, *leaves[index + 1 :]])

    with one_pass_above(small):
        expected = pieces(update(grads, **grouping), grads, grouping)
        updates = update(broken, **grouping)
        assert not np.isfinite(wide(jax.tree.leaves(updates)[index])).all()
        found = pieces(updates, broken, grouping)
        for piece, clean in zip(found, expected, strict=True):
            if not np.isfinite(piece.weights(piece.before)).all():
                assert np.isnan(piece.scale)
                assert all(np.isnan(wide(value)).all() for value in piece.after)
                continue
            np.testing.assert_allclose(piece.scale, clean.scale, rtol=1e-5)
            for before, got, kept in zip(
                piece.before, piece.after, clean.after, strict=True
            ):
                is_finite = np.isfinite(wide(before))
                assert not np.isfinite(wide(got))[~is_finite].any()
                np.testing.assert_allclose(
                    wide(got)[is_finite], wide(kept)[is_finite], rtol=1e-2
                )


# --- Options that do not fit ----------------------------------------------------------


def message(function, *arguments, **options):
    """Of the ValueError that the function raises; None if it does not."""
    try:
        function(*arguments, **options)
    except ValueError as error:
        return str(error)


def names_a_leaf(text, tree):
    paths = [path for _, path, _ in _layers._leaves_with_paths(tree)]
    return any(repr(_layers.path_name(path)) in text for path in paths)


@examples
@given(strategies.trees(), groupings(any_stack_axis))
def test_a_stack_axis_that_does_not_fit_names_the_leaf(grads, grouping):
    found = message(update, grads, **grouping)
    assert found == message(sg.layer_scales, grads, **grouping)
    assert found == message(sg.tabulate, grads, **grouping)

    def is_beyond(path, leaf):
        axis = grouping["stack_axis"]
        axis = axis(path, leaf) if callable(axis) else axis
        return is_inexact(leaf) and not -np.ndim(leaf) <= axis < np.ndim(leaf)

    if any(is_beyond(*item) for item in jax.tree_util.tree_leaves_with_path(grads)):
        assert "is out of range for leaf" in found
    elif found is not None:
        event("lengths differ" if "length" in found else "not clear")
        assert "one layer needs one length" in found or "must alternate" in found
    if found is None:
        event("fits")
        check(update(grads, **grouping), grads, grouping, 1.0, None)
    else:
        assert names_a_leaf(found, grads)


@examples
@given(strategies.trees())
def test_a_group_that_is_not_hashable_names_the_leaf(grads):
    found = message(update, grads, group_by=lambda path: list(path))
    if any(is_inexact(leaf) for leaf in jax.tree.leaves(grads)):
        assert "group_by must return something hashable" in found
        assert names_a_leaf(found, grads)
    else:
        assert found is None


not_positive = st.floats(max_value=0)
not_scalar = st.lists(st.floats(), max_size=3).map(np.array)
BAD_OPTIONS = {
    "group_by": (st.text() | st.integers() | st.lists(st.text())).filter(
        lambda name: name not in _layers.GROUPINGS
    ),
    "statistic": (st.text() | st.none() | st.lists(st.text())).filter(
        lambda name: name not in _scale.STATISTICS
    ),
    "reference": not_positive.filter(bool) | not_scalar,
    "max_gain": not_positive | st.just(math.nan) | not_scalar,
}


@examples
@given(
    st.sampled_from(sorted(BAD_OPTIONS)).flatmap(
        lambda name: st.tuples(st.just(name), BAD_OPTIONS[name])
    )
)
def test_a_bad_option_is_named_at_construction(option):
    name, value = option
    with pytest.raises(ValueError, match=name):
        sg.stablegrad(**{name: value})
