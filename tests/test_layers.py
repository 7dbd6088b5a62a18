"""Which leaves form a layer, on every convention of parameter trees.

A tree is written with a label in the place of each leaf: `w(name)` for a weight of the
layer of that name, `b(name)` for another member. Random gradients take their places,
each of a size of its own, so that scales and updates tell which leaves form a layer.
"""

import collections
import dataclasses

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from definitions import elements, scale, wide
from flax import nnx

import stablegrad_optax as sg


@dataclasses.dataclass(frozen=True)
class Label:
    layer: str | None  # None: it passes unchanged
    is_weight: bool
    shape: tuple[int, ...]
    axis: int | None = None  # along which layers are stacked in it


def w(layer, *shape, axis=None):
    return Label(layer, True, shape or (3, 3), axis)


def b(layer=None, *shape, axis=None):
    return Label(layer, False, shape or (3,), axis)


def slices(label, leaf):
    """The layers that are stacked in a leaf, along a new first axis if it is one."""
    return leaf[None] if label.axis is None else np.moveaxis(leaf, label.axis, 0)


def members_of_layers(labels):
    """For each layer, by name and number of its slice, its (index of a leaf, label)."""
    layers = collections.defaultdict(list)
    for index, label in enumerate(labels):
        if getattr(label, "layer", None) is not None:
            for i in range(len(slices(label, np.empty(label.shape)))):
                layers[label.layer, i].append((index, label))
    return layers


# Of elements that are multiplied by their gain.
ROUNDING = {"bfloat16": 1e-2, "float16": 4e-3, "float64": 1e-9, "complex128": 1e-9}


@np.errstate(over="ignore")
def assert_is_the_definition(
    labels, before, after, scales, statistic="std", reference=1.0, max_gain=np.inf
):
    """γ = ρ / σ for all members of each layer; elements beyond their dtype saturate.

    `scales` are those of layer_scales; all else are lists of leaves.
    """
    layers = members_of_layers(labels)
    assert list(scales) == list(dict.fromkeys(name for name, _ in layers))
    unchanged = set(range(len(labels)))
    for (name, i), members in layers.items():
        weights = [slices(la, before[j])[i] for j, la in members if la.is_weight]
        sigma, rms = scale(weights, statistic), scale(weights, "rms")
        gain = min(reference / sigma, max_gain) if sigma else 1
        is_wide = any(jnp.finfo(x.dtype).bits == 64 for x in weights)
        low, high = (1e-150, 1e150) if is_wide else (1e-17, 1e15)
        is_in_range = rms == 0 or low < rms < high
        found = np.ravel(scales[name])[i]
        assert found.dtype == ("float64" if is_wide else "float32")
        if is_in_range:
            np.testing.assert_allclose(found, sigma, rtol=1e-9 if is_wide else 1e-3)
        for j, label in members:
            unchanged.discard(j)
            dtype = before[j].dtype
            x, got = (wide(slices(label, np.asarray(y[j]))[i]) for y in (before, after))
            tiny, largest = float(jnp.finfo(dtype).tiny), float(jnp.finfo(dtype).max)
            assert np.isfinite(got).all()
            if is_in_range:
                # Devices may take subnormal numbers for zero.
                lost = tiny + min(tiny, float(jnp.finfo("float32").tiny)) * gain
                for of in (np.real, np.imag):
                    y = np.clip(gain * of(x), -largest, largest)
                    rtol = ROUNDING.get(dtype.name, 2e-3)
                    np.testing.assert_allclose(of(got), y, rtol, lost)
            elif rms > 1:
                assert (np.abs(got) <= 1.001 * np.abs(x)).all()
            elif label.is_weight:  # unchanged, or rescaled
                bound = 17.1 * reference * np.sqrt(elements(weights).size)
                assert (np.abs(got) <= np.maximum(bound, np.abs(x))).all()
    for j in unchanged:
        assert after[j] is before[j]


def assert_layers(labelled, **grouping):
    """layer_scales has the layers of the labels, and the update has their gains."""
    labels, structure = jax.tree.flatten(labelled)
    rng = np.random.default_rng(0)

    def gradient(label):
        if not isinstance(label, Label):
            return label
        values = 10.0 ** rng.uniform(-4, 4) * rng.normal(size=label.shape)
        return np.asarray(values, np.float32)

    before = list(map(gradient, labels))
    tree = jax.tree.unflatten(structure, before)
    scales = sg.layer_scales(tree, **grouping)
    after = jax.tree.leaves(update(tree, **grouping))
    assert_is_the_definition(labels, before, after, scales)
    number = sum(map(np.size, scales.values()))
    assert f"{number} with weights; " in sg.tabulate(tree, **grouping)


def update(tree, reference=None, **options):
    tx = sg.stablegrad(**options)
    # A library must not promote its users' dtypes behind their backs.
    with jax.numpy_dtype_promotion("strict"):
        return tx.update(tree, tx.init(tree), reference=reference)[0]


# --- Conventions ---


class EqxLinear(eqx.Module):
    weight: Label
    bias: Label


class EqxAttention(eqx.Module):
    query: Label
    key: Label
    value: Label


class EqxEmbedding(eqx.Module):
    value: Label


Pair = collections.namedtuple("Pair", ["w", "b"])


def dense(layer, *stack, axis=None):
    return {
        "kernel": w(layer, *stack, 3, 3, axis=axis),
        "bias": b(layer, *stack, 3, axis=axis),
    }


LINEN = {
    "params": {
        "Dense_0": dense("params/Dense_0"),
        "Dense_1": dense("params/Dense_1"),
        "LayerNorm_0": {"scale": b(), "bias": b()},
    }
}
NNX = {
    "stem": dense("stem"),
    "norm": {"scale": b(), "bias": b()},
    "blocks": {0: dense("blocks/0"), 1: dense("blocks/1")},
    "arrays": {0: w("arrays/0"), 1: b("arrays/0"), 2: w("arrays/2"), 3: b("arrays/2")},
    "temperature": b(),
}

CONVENTIONS = {
    "linen": LINEN,
    "linen, frozen": flax.core.freeze(LINEN),
    "linen, flat by tuples": flax.traverse_util.flatten_dict(LINEN),
    "linen, flat by names": flax.traverse_util.flatten_dict(LINEN, sep="/"),
    "linen, boxed": {
        "Dense_0": {
            "kernel": nn.Partitioned(w("Dense_0"), (None, "model")),
            "bias": nn.Partitioned(b("Dense_0"), ("model",)),
        }
    },
    # Kernels of shape (d, heads, d), and biases of shape (heads, d).
    "linen, attention": {
        name: {"kernel": w(name, 4, 2, 3), "bias": b(name, 2, 3)}
        for name in ("query", "value")
    },
    "nnx, pure": NNX,
    "nnx, state": nnx.State(jax.tree.map(nnx.Param, NNX)),
    "equinox": {
        "layers": [EqxLinear(w(f"layers/{i}"), b(f"layers/{i}")) for i in (0, 1)]
    },
    # Biases of shape (C, 1, 1).
    "equinox, convolutions": [
        EqxLinear(w(str(i), 4, 2, 3, 3), b(str(i), 4, 1, 1)) for i in (0, 1)
    ],
    "equinox, flat convolutions": [
        label for i in ("0", "2") for label in (w(i, 4, 4, 3, 3), b(i, 4, 1, 1))
    ],
    "equinox, arrays called value": {
        "attention": EqxAttention(*[w("attention")] * 3),
        "source": EqxEmbedding(w("source")),
        "target": EqxEmbedding(w("target")),
    },
    "haiku": {
        f"mlp/~/linear_{i}": Pair(w(f"mlp/~/linear_{i}"), b(f"mlp/~/linear_{i}"))
        for i in (0, 1)
    },
    "stax": [(w("0"), b("0")), (), (w("2"), b("2"))],
    "safetensors": {
        "layers.0.weight": w("layers/0"),
        "layers.0.bias": b("layers/0"),
        "norm.weight": b(),
    },
    "bare array": w("."),
    "in the order of the tree": [dense("0"), {"b": dense("1/b"), "a": dense("1/a")}],
    "a list of weights beside a module": {
        "towers": [w("towers/0"), w("towers/1")],
        "head": dense("head"),
    },
    "a coefficient beside a list": {
        "net": [w("net/0"), b("net/0"), w("net/2"), b("net/2")],
        "viscosity": b(),
    },
    "nested and flat names": {"a": {"b": dense("a/b")}, "a/b/kernel": w("a/b (2)")},
    "nested and haiku's names": {"a": {"b": dense("a/b")}, "a/b": {"w": w("a/b (2)")}},
    "an array beside a flat name": {"a": {"b": w("a")}, "a/b/kernel": w("a/b")},
    "a name that looks like a second one": {
        "a": {"b": dense("a/b")},
        "a/b": dense("a/b (2)"),
        "a/b (2)": dense("a/b (2) (2)"),
    },
    "leaves of other kinds": {
        "first": [None, True, 3, dense("first/3")],
        "second": dense("second")
        | {
            "a": optax.MaskedNode(),
            "count": jnp.arange(9).reshape(3, 3),
            "float0": np.zeros((3, 3), jax.dtypes.float0),
            "key": jax.random.key(0),
        },
    },
    "single elements": {
        "first": {"kernel": w("first", 1, 1), "bias": b("first", 1)},
        "temperature": Label(None, False, ()),
    },
    "no elements": {
        "empty": {"kernel": b(None, 0, 3), "bias": b()},
        "pooled": dense("pooled") | {"extra": b("pooled", 0, 3)},
    },
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions(name):
    assert_layers(CONVENTIONS[name])


# --- Sequences of arrays ---


def state_dict(arrays):
    """As `flax.serialization.to_state_dict` writes a list; sorted as text."""
    return {str(i): array for i, array in enumerate(arrays)}


def nnx_list(arrays):
    return dict(enumerate(arrays))


containers = pytest.mark.parametrize("container", [list, tuple, state_dict, nnx_list])


@containers
@pytest.mark.parametrize(
    ("kinds", "layers"),
    [
        ("Wb", [".", "."]),  # one weight: one module
        ("bW", [".", "."]),
        ("Wbb", [".", ".", "."]),
        ("bbb", [None] * 3),
        ("WW", ["0", "1"]),
        ("WbWb", ["0", "0", "2", "2"]),
        ("WbW", ["0", "0", "2"]),  # the last layer has no bias
        ("WbWbWbWbWbWb", [str(i - i % 2) for i in range(12)]),
    ],
)
def test_sequences(container, kinds, layers):
    labels = {"W": w, "b": b}
    tree = container([labels[k](la) for k, la in zip(kinds, layers, strict=True)])
    assert_layers(tree)


def test_a_masked_item_leaves_the_others_where_they_are():
    assert_layers([w("0"), optax.MaskedNode(), w("2"), b("2")])
    assert_layers([optax.MaskedNode(), w("1"), b("1"), w("3"), b("3")])


@containers
@pytest.mark.parametrize(
    "kinds", ["WWbb", "WbWbb", "WbbWb", "WWb", "bWW", "bWbW", "WbWWb"]
)
def test_a_mixed_sequence_is_an_error_that_names_its_leaves(container, kinds):
    arrays = [jnp.ones((3, 3) if kind == "W" else 3) for kind in kinds]
    tree = {"net": container(arrays)}
    with pytest.raises(ValueError, match="group_by") as error:
        sg.layer_scales(tree)
    for i, array in enumerate(arrays):
        assert f"'net/{i}' {array.shape}" in str(error.value)
    # By any other grouping there is nothing to guess.
    weights = [f"net/{i}" for i, kind in enumerate(kinds) if kind == "W"]
    assert list(sg.layer_scales(tree, group_by="leaf")) == weights
    assert list(sg.layer_scales(tree, group_by="tree")) == ["."]
    assert list(sg.layer_scales(tree, group_by=lambda path, leaf: "all")) == ["all"]


# --- Options ---


def only_blocks(path, leaf):
    return 0 if path[0].key == "blocks" else None


OPTIONS = {
    "leaf": (
        {"first": {"kernel": w("first/kernel"), "bias": b()}, "norm": {"scale": b()}},
        {"group_by": "leaf"},
    ),
    "leaf: attributes called value": (
        EqxAttention(w("query"), w("key"), w("value")),
        {"group_by": "leaf"},
    ),
    "leaf: a variable without its box": (
        nnx.State({"stem": {"kernel": nnx.Param(w("stem/kernel"))}}),
        {"group_by": "leaf"},
    ),
    "tree": (
        {"first": dense("."), "norm": {"scale": b(".")}, "second": dense(".")},
        {"group_by": "tree"},
    ),
    "callable: the path": (
        {"final": dense("f"), "first": dense("f"), "second": dense("s")},
        {"group_by": lambda path, leaf: path[0].key[0]},
    ),
    "callable: the leaf": (
        {"a": w("2", 2, 3), "b": w("1", 3), "c": w("2", 3, 2)},
        {
            "group_by": lambda path, leaf: leaf.ndim,
            "is_weight": lambda path, leaf: np.bool_(True),
        },
    ),
    "callable: keys that print alike": (
        {"1": dense("1"), "one": dense("1 (2)")},
        {"group_by": lambda path, leaf: {"1": 1}.get(path[0].key, "1")},
    ),
    "is_weight: all": (
        {"norm": {"scale": w("norm", 3), "bias": w("norm", 3)}},
        {"is_weight": lambda path, leaf: True},
    ),
    "is_weight: the path": (
        {"a": {"kernel": b("a", 3, 3), "bias": w("a", 3)}},
        {"is_weight": lambda path, leaf: path[-1].key == "bias"},
    ),
    "is_weight: the leaf": (
        {"a": {"kernel": b("a", 3, 3), "bias": w("a", 3)}},
        {"is_weight": lambda path, leaf: leaf.ndim == 1},
    ),
    "stacked": ({"blocks": dense("blocks", 5, axis=0)}, {"stack_axis": 0}),
    "stacked on another axis": (
        [w("0", 3, 5, 2, axis=1), b(None, 4, 6, axis=1)],
        {"stack_axis": np.int64(1), "group_by": "leaf"},
    ),
    "stacked on the last axis": (
        {"kernel": w(".", 3, 2, 5, axis=2), "bias": b(".", 3, 5, axis=1)},
        {"stack_axis": -1},
    ),
    "stacked in part": (
        {"blocks": dense("blocks", 5, axis=0), "head": dense("head")},
        {"stack_axis": only_blocks},
    ),
    "stacked and plain in one module": (
        {"moe": {"experts": w("moe", 5, 3, 3, axis=0), "router": w("moe (2)", 3, 5)}},
        {"stack_axis": lambda path, leaf: 0 if leaf.ndim == 3 else None},
    ),
    # The stacked bias stays without weight: stack axes are not counted.
    "slices in a tree": (
        {"blocks": dense(".", 5)},
        {"group_by": "tree", "stack_axis": 0},
    ),
    "no slices": (
        {"blocks": {"kernel": b(None, 0, 3, 3), "bias": b(None, 0, 3)}},
        {"stack_axis": 0},
    ),
    "lengths of their own": (
        {"kernel": w("kernel", 5, 3, 3, axis=0), "bias": b(None, 6, 3, axis=0)},
        {"stack_axis": 0, "group_by": "leaf"},
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    tree, options = OPTIONS[name]
    assert_layers(tree, **options)


TWO_LAYERS = {
    n: {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)} for n in ("in", "out")
}
LENGTHS = {"blocks": {"kernel": jnp.ones((5, 3, 3)), "bias": jnp.ones((6, 3))}}


@pytest.mark.parametrize("function", [sg.layer_scales, sg.tabulate, update])
@pytest.mark.parametrize(
    ("tree", "options", "message"),
    [
        (TWO_LAYERS, {"group_by": "module"}, "group_by.*'module'"),
        (TWO_LAYERS, {"statistic": "mad"}, "statistic.*'mad'"),
        (TWO_LAYERS, {"group_by": lambda path, leaf: [path]}, "hashable.*'in/bias'"),
        (TWO_LAYERS, {"stack_axis": 2}, r"axis 2 .*'in/bias' of shape \(3,\)"),
        (TWO_LAYERS, {"stack_axis": -3}, r"axis -3 .*'in/bias' of shape \(3,\)"),
        (TWO_LAYERS, {"stack_axis": jnp.float32(0)}, "stack_axis must be an int"),
        ({"t": jnp.ones(())}, {"stack_axis": 0}, r"'t' of shape \(\)"),
        (LENGTHS, {"stack_axis": 0}, "'blocks/bias' and 5 in 'blocks/kernel'"),
    ],
)
def test_errors_name_the_option_or_the_leaf(function, tree, options, message):
    with pytest.raises(ValueError, match=message):
        function(tree, **options)
