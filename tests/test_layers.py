"""Which leaves form a layer, on every convention of parameter trees."""

import string

import chex
import equinox as eqx
import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util
from hypothesis import given
from hypothesis import strategies as st

import stablegrad_optax as sg
from stablegrad_optax import _layers

INPUTS = jnp.ones((2, 3))


def random_like(tree, seed=0):
    """Distinct elements, and a size for each leaf: values tell leaves apart."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        size = 10.0 ** rng.uniform(-6, 2)
        return jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(fill, tree)


def dense(fan_in=3, fan_out=4, *stack):
    return {
        "kernel": jnp.ones((*stack, fan_in, fan_out)),
        "bias": jnp.ones((*stack, fan_out)),
    }


def pooled_std(leaves):
    elements = np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in leaves])
    return elements.std()


def contents(leaves):
    return {np.asarray(leaf).tobytes() for leaf in leaves}


def members_by_layer(tree, **grouping):
    leaves = jax.tree.leaves(tree)
    return {
        layer.name: contents(leaves[leaf.index] for leaf in layer.members)
        for layer in _layers.find_layers(tree, **grouping)
    }


def weights_by_layer(tree):
    leaves = jax.tree.leaves(tree)
    return {
        layer.name: contents(leaves[leaf.index] for leaf in layer.weights)
        for layer in _layers.find_layers(tree)
    }


# --- Conventions: a tree, and its layers as (weights, other members) ------------------


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.LayerNorm()(nn.Dense(4)(x)))


class LinenBoxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (4, 1):
            x = nn.Dense(
                width,
                kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "model")),
                bias_init=nn.with_partitioning(nn.initializers.zeros, ("model",)),
            )(x)
        return x


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        as_list = getattr(nnx, "List", list)  # newer flax marks lists as data
        self.stem = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.blocks = as_list([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.arrays = as_list(
            [nnx.Param(jnp.ones(shape)) for shape in [(4, 4), (4,), (4, 1), (1,)]]
        )


class NnxAttention(nnx.Module):
    def __init__(self, rngs):
        self.query = nnx.Linear(3, 3, rngs=rngs)
        self.value = nnx.Linear(3, 3, rngs=rngs)
        self.temperature = nnx.Param(jnp.ones(2))


class EqxAttention(eqx.Module):
    query: jax.Array
    key: jax.Array
    value: jax.Array


class EqxLinearAttention(eqx.Module):
    query: eqx.nn.Linear
    value: eqx.nn.Linear


class EqxEmbedding(eqx.Module):
    value: jax.Array


class EqxTwoEmbeddings(eqx.Module):
    source: EqxEmbedding
    target: EqxEmbedding


def linen_params():
    return random_like(jax.eval_shape(LinenMLP().init, jax.random.key(0), INPUTS))


def linen_layers(params):
    first, norm, last = (
        params["params"][n] for n in ("Dense_0", "LayerNorm_0", "Dense_1")
    )
    return {
        "params/Dense_0": ([first["kernel"]], [first["bias"]]),
        "params/Dense_1": ([last["kernel"]], [last["bias"]]),
        "params/LayerNorm_0": ([], [norm["scale"], norm["bias"]]),
    }


def linen_dict():
    params = linen_params()
    return params, linen_layers(params)


def linen_frozen():
    params = linen_params()
    return flax.core.freeze(params), linen_layers(params)


def linen_flat_tuples():
    params = linen_params()
    return traverse_util.flatten_dict(params), linen_layers(params)


def linen_flat_names():
    params = linen_params()
    return traverse_util.flatten_dict(params, sep="/"), linen_layers(params)


def linen_boxed():
    params = random_like(jax.eval_shape(LinenBoxed().init, jax.random.key(0), INPUTS))
    raw = nn.unbox(params)["params"]
    return params, {
        f"params/{name}": ([raw[name]["kernel"]], [raw[name]["bias"]])
        for name in ("Dense_0", "Dense_1")
    }


def nnx_layers(pure):
    linear = {"stem": pure["stem"]} | {f"blocks/{i}": pure["blocks"][i] for i in (0, 1)}
    arrays = pure["arrays"]
    layers = {name: ([at["kernel"]], [at["bias"]]) for name, at in linear.items()}
    return layers | {
        "norm": ([], [pure["norm"]["scale"], pure["norm"]["bias"]]),
        "arrays/0": ([arrays[0]], [arrays[1]]),
        "arrays/2": ([arrays[2]], [arrays[3]]),
    }


def nnx_state():
    state = random_like(
        nnx.state(nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0))), nnx.Param)
    )
    return state, nnx_layers(nnx.to_pure_dict(state))


def nnx_pure_dict():
    pure = nnx.to_pure_dict(nnx_state()[0])
    return pure, nnx_layers(pure)


def nnx_attention():
    state = random_like(
        nnx.state(nnx.eval_shape(lambda: NnxAttention(nnx.Rngs(0))), nnx.Param)
    )
    pure = nnx.to_pure_dict(state)
    return state, {
        "query": ([pure["query"]["kernel"]], [pure["query"]["bias"]]),
        ".": ([], [pure["temperature"]]),
        "value": ([pure["value"]["kernel"]], [pure["value"]["bias"]]),
    }


def equinox_mlp():
    mlp = eqx.nn.MLP(3, 1, 4, 2, key=jax.random.key(0))
    mlp = random_like(eqx.filter(mlp, eqx.is_inexact_array))
    return mlp, {
        f"layers/{i}": ([layer.weight], [layer.bias])
        for i, layer in enumerate(mlp.layers)
    }


def equinox_attention():
    arrays = EqxAttention(*[jnp.ones((3, 3))] * 3)
    tree = random_like({"attention": arrays, "head": dense()})
    at = tree["attention"]
    return tree, {
        "attention": ([at.query, at.key, at.value], []),
        "head": ([tree["head"]["kernel"]], [tree["head"]["bias"]]),
    }


def equinox_linear_attention():
    linear = eqx.nn.Linear(3, 3, key=jax.random.key(0))
    tree = random_like(EqxLinearAttention(linear, linear))
    return tree, {
        "query": ([tree.query.weight], [tree.query.bias]),
        "value": ([tree.value.weight], [tree.value.bias]),
    }


def haiku_two_levels():
    network = hk.transform(lambda x: hk.nets.MLP([4, 4, 1])(x))
    params = random_like(jax.eval_shape(network.init, jax.random.key(0), INPUTS))
    return params, {name: ([at["w"]], [at["b"]]) for name, at in params.items()}


def stax_tuples():
    W, b = jnp.ones((3, 3)), jnp.ones(3)
    params = random_like([(W, b), (), (W, b)])  # the activation between has no params
    return params, {
        "0": ([params[0][0]], [params[0][1]]),
        "2": ([params[2][0]], [params[2][1]]),
    }


def equinox_convolutions():
    """Biases of shape (C, 1, 1)."""
    keys = jax.random.split(jax.random.key(0))
    tree = random_like([eqx.nn.Conv2d(2, 3, 3, key=key) for key in keys])
    return tree, {str(i): ([at.weight], [at.bias]) for i, at in enumerate(tree)}


def linen_multi_head_attention():
    """Kernels of shape (d, heads, d), and biases of shape (heads, d)."""
    network = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)
    shapes = jax.eval_shape(network.init, jax.random.key(0), INPUTS[None])
    params = random_like(shapes["params"])
    return params, {name: ([at["kernel"]], [at["bias"]]) for name, at in params.items()}


def safetensors():
    """Flat names with dots."""
    tree = random_like(
        {
            f"layers.{i}.{name}": jnp.ones(shape)
            for i in range(2)
            for name, shape in (("weight", (4, 3)), ("bias", (4,)))
        }
        | {"norm.weight": jnp.ones(4)}
    )
    return tree, {
        "layers/0": ([tree["layers.0.weight"]], [tree["layers.0.bias"]]),
        "layers/1": ([tree["layers.1.weight"]], [tree["layers.1.bias"]]),
        "norm": ([], [tree["norm.weight"]]),
    }


def bare_array():
    array = random_like(jnp.ones((3, 4)))
    return array, {".": ([array], [])}


CONVENTIONS = [
    linen_dict,
    linen_frozen,
    linen_flat_tuples,
    linen_flat_names,
    linen_boxed,
    nnx_state,
    nnx_pure_dict,
    nnx_attention,
    equinox_mlp,
    equinox_attention,
    equinox_linear_attention,
    haiku_two_levels,
    stax_tuples,
    equinox_convolutions,
    linen_multi_head_attention,
    safetensors,
    bare_array,
]


@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda f: f.__name__)
def test_conventions(convention):
    tree, layers = convention()
    assert weights_by_layer(tree) == {
        name: contents(weights) for name, (weights, _) in layers.items()
    }
    assert members_by_layer(tree) == {
        name: contents((*weights, *others))
        for name, (weights, others) in layers.items()
    }


def test_layers_come_in_the_order_of_the_tree():
    tree = [dense(), {"b": dense(), "a": dense()}, dense()]
    names = [layer.name for layer in _layers.find_layers(tree)]
    assert names == ["0", "1/a", "1/b", "2"] == list(sg.layer_scales(tree))


def test_modules_whose_only_array_is_called_value():
    tree = random_like(EqxTwoEmbeddings(*[EqxEmbedding(jnp.ones((3, 3)))] * 2))
    expected = {
        "source": pooled_std([tree.source.value]),
        "target": pooled_std([tree.target.value]),
    }
    scales = sg.layer_scales(tree)
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


# --- Sequences of arrays --------------------------------------------------------------


def sequence(container, kinds):
    shapes = {"W": (3, 3), "b": (3,)}
    return random_like(container(jnp.ones(shapes[kind]) for kind in kinds))


def state_dict(arrays):
    """As `flax.serialization.to_state_dict` writes a list."""
    return {str(i): array for i, array in enumerate(arrays)}


def nnx_list(arrays):
    return dict(enumerate(arrays))


@pytest.mark.parametrize("container", [list, tuple, state_dict, nnx_list])
@pytest.mark.parametrize(
    ("kinds", "owners"),
    [
        ("Wb", ".."),  # one weight: one module
        ("bW", ".."),
        ("Wbb", "..."),
        ("bbb", "..."),
        ("WW", "01"),
        ("WbWb", "0022"),
        ("WbW", "002"),  # the last layer has no bias
        (
            "WbWbWbWbWbWb",
            ["0", "0", "2", "2", "4", "4", "6", "6", "8", "8", "10", "10"],
        ),
    ],
)
def test_sequences(container, kinds, owners):
    arrays = sequence(list, kinds)
    expected = {}
    for array, owner in zip(arrays, owners, strict=True):
        expected.setdefault(owner, set()).add(np.asarray(array).tobytes())
    tree = container(arrays)
    assert members_by_layer(tree) == expected
    weights = {owner: set() for owner in expected}
    for array, owner, kind in zip(arrays, owners, kinds, strict=True):
        if kind == "W":
            weights[owner] |= contents([array])
    assert weights_by_layer(tree) == weights


@pytest.mark.parametrize("container", [list, tuple, state_dict, nnx_list])
@pytest.mark.parametrize(
    "kinds", ["WWbb", "WbWbb", "WbbWb", "WWb", "bWW", "bWbW", "WbWWb"]
)
def test_a_mixed_sequence_is_an_error_that_names_its_leaves(container, kinds):
    tree = {"net": container(sequence(list, kinds))}
    with pytest.raises(ValueError, match="group_by") as error:
        sg.layer_scales(tree)
    for i, kind in enumerate(kinds):
        shape = {"W": "(3, 3)", "b": "(3,)"}[kind]
        assert f"'net/{i}' {shape}" in str(error.value)
    # By any other grouping there is nothing to guess.
    weights = [f"net/{i}" for i, kind in enumerate(kinds) if kind == "W"]
    assert list(sg.layer_scales(tree, group_by="leaf")) == weights
    assert list(sg.layer_scales(tree, group_by="tree")) == ["."]
    assert list(sg.layer_scales(tree, group_by=lambda path: "all")) == ["all"]


def test_a_masked_item_leaves_the_others_where_they_are():
    W1, _, W2, b2 = sequence(list, "WbWb")
    assert members_by_layer([W1, optax.MaskedNode(), W2, b2]) == {
        "0": {np.asarray(W1).tobytes()},
        "2": {np.asarray(W2).tobytes(), np.asarray(b2).tobytes()},
    }


def test_a_coefficient_beside_a_network_in_a_flat_list():
    W, b = jnp.ones((3, 3)), jnp.ones(3)
    with pytest.raises(ValueError, match=r"'4' \(\).*group_by"):
        sg.layer_scales([W, b, W, b, 0.01])
    tree = random_like({"network": [W, b, W, b], "viscosity": jnp.ones(())})
    assert list(sg.layer_scales(tree)) == ["network/0", "network/2"]


def test_flat_list_of_an_equinox_network():
    """Its convolutions have biases of three axes."""
    keys = jax.random.split(jax.random.key(0))
    convs = [eqx.nn.Conv2d(4, 4, 3, key=key) for key in keys]
    arrays = random_like(jax.tree.leaves(convs))
    assert [x.ndim for x in arrays] == [4, 3, 4, 3]
    assert weights_by_layer(arrays) == {
        "0": contents(arrays[:1]),
        "2": contents(arrays[2:3]),
    }


def test_sequence_beside_modules():
    tree = random_like({"towers": [jnp.ones((3, 3))] * 2, "head": dense()})
    assert set(sg.layer_scales(tree)) == {"towers/0", "towers/1", "head"}


# --- Names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flat",
    [
        pytest.param({"a/b": {"kernel": jnp.ones((3, 3))}}, id="haiku"),
        pytest.param({"a/b/kernel": jnp.ones((3, 3))}, id="flat"),
    ],
)
def test_nested_and_flat_modules_of_one_name_stay_apart(flat):
    tree = random_like({"a": {"b": dense()}} | flat)
    (flat_leaf,) = jax.tree.leaves({name: tree[name] for name in flat})
    scales = sg.layer_scales(tree)
    assert len(scales) == 2
    expected = [pooled_std([tree["a"]["b"]["kernel"]]), pooled_std([flat_leaf])]
    np.testing.assert_allclose(list(scales.values()), expected, rtol=1e-5)


def test_nested_array_and_flat_name():
    tree = random_like({"a": {"b": jnp.ones((3, 3))}, "a/b/kernel": jnp.ones((3, 3))})
    expected = {
        "a": pooled_std([tree["a"]["b"]]),
        "a/b": pooled_std([tree["a/b/kernel"]]),
    }
    scales = sg.layer_scales(tree)
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


def test_a_name_made_distinct_is_not_another_layers_name():
    tree = {"a": {"b": dense()}, "a/b": dense(), "a/b (2)": dense()}
    assert len(sg.layer_scales(tree)) == 3


def test_keys_that_print_alike_have_distinct_names():
    keys = {"first": 1, "second": "1"}
    tree = random_like({"first": dense(), "second": dense()})
    scales = sg.layer_scales(tree, group_by=lambda path: keys[path[0].key])
    chex.assert_trees_all_close(
        scales,
        {
            name: pooled_std([tree[at]["kernel"]])
            for name, at in [("1", "first"), ("1 (2)", "second")]
        },
        rtol=1e-5,
    )


# --- Leaves without a gradient --------------------------------------------------------


@pytest.mark.parametrize(
    "bystander",
    [
        None,
        optax.MaskedNode(),
        3,
        True,
        jnp.arange(9).reshape(3, 3),
        np.zeros((3, 3), jax.dtypes.float0),
        jax.random.key(0),
    ],
    ids=["None", "MaskedNode", "int", "bool", "int array", "float0", "PRNG key"],
)
def test_leaves_that_are_not_floating_point_belong_to_no_layer(bystander):
    tree = {"first": {"kernel": 1}, "second": {"kernel": 1, "bias": 1}}
    tree = random_like(jax.tree.map(lambda _: jnp.ones((3, 3)), tree))
    expected = sg.layer_scales(tree)
    # Ahead of the others, so that positions among the leaves shift.
    mixed = {"a": bystander, "first": tree["first"] | {"a": bystander}}
    mixed["second"] = tree["second"]
    chex.assert_trees_all_close(sg.layer_scales(mixed), expected)
    assert members_by_layer(mixed) == members_by_layer(tree)


def test_python_floats_and_numpy_arrays_are_leaves():
    kernel = np.array([[1.0, 3.0]], np.float32)
    scales = sg.layer_scales({"kernel": kernel, "temperature": 2.0})
    chex.assert_trees_all_close(scales, {".": 1.0})


def test_zero_size_leaves_have_no_scale():
    tree = random_like(
        {"empty": dense(0, 4), "pooled": dense() | {"extra": jnp.ones((0, 3))}}
    )
    expected = {"pooled": pooled_std([tree["pooled"]["kernel"]])}
    scales = sg.layer_scales(tree)
    assert set(scales) == {"pooled"}
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)
    assert sg.layer_scales(tree, is_weight=lambda path, leaf: True).keys() == {
        "empty",  # the bias is a weight there
        "pooled",
    }


def test_stack_of_no_slices_has_no_scale():
    tree = {"blocks": dense(3, 4, 0)}
    assert sg.layer_scales(tree, stack_axis=0) == {}


# --- group_by -------------------------------------------------------------------------


@pytest.fixture
def two_layers():
    return random_like({"first": dense(), "second": dense(4, 2)})


def test_group_by_leaf(two_layers):
    scales = sg.layer_scales(two_layers, group_by="leaf")
    expected = {
        f"{name}/kernel": pooled_std([two_layers[name]["kernel"]])
        for name in two_layers
    }
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


def test_group_by_leaf_keeps_leaves_called_value_apart():
    tree = {"attention": EqxAttention(*[jnp.ones((3, 3))] * 3)}
    names = set(sg.layer_scales(tree, group_by="leaf"))
    assert names == {f"attention/{name}" for name in ("query", "key", "value")}


def test_group_by_leaf_names_a_variable_without_its_box():
    state, layers = nnx_state()
    names = set(sg.layer_scales(state, group_by="leaf"))
    linear = {"stem", "blocks/0", "blocks/1"}
    assert names == {f"{name}/kernel" for name in linear} | (
        {name for name, (weights, _) in layers.items() if weights} - linear
    )


def test_group_by_tree(two_layers):
    kernels = [layer["kernel"] for layer in two_layers.values()]
    scales = sg.layer_scales(two_layers, group_by="tree")
    chex.assert_trees_all_close(scales, {".": pooled_std(kernels)}, rtol=1e-5)
    (layer,) = _layers.find_layers(two_layers, "tree")
    assert len(layer.members) == 4


def test_group_by_callable(two_layers):
    def by_initial(path):
        return path[0].key[0]

    tree = two_layers | {"final": random_like(dense(), seed=1)}
    expected = {
        "f": pooled_std([tree["first"]["kernel"], tree["final"]["kernel"]]),
        "s": pooled_std([tree["second"]["kernel"]]),
    }
    scales = sg.layer_scales(tree, group_by=by_initial)
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_group_by_callable_pools_what_shares_a_key(keys):
    tree = dict(zip(string.ascii_lowercase, keys, strict=False))
    tree = random_like({name: jnp.ones((2, 3)) for name in tree})
    key_of = dict(zip(tree, keys, strict=True))
    expected = {
        str(key): pooled_std([tree[name] for name in tree if key_of[name] == key])
        for key in set(keys)
    }
    scales = sg.layer_scales(tree, group_by=lambda path: key_of[path[0].key])
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


def test_unhashable_group_names_the_leaf(two_layers):
    with pytest.raises(ValueError, match=r"hashable.*'first/bias'"):
        sg.layer_scales(two_layers, group_by=lambda path: [path[0].key])


def test_unknown_grouping(two_layers):
    with pytest.raises(ValueError, match=r"group_by.*'module'"):
        sg.layer_scales(two_layers, group_by="module")


# --- is_weight ------------------------------------------------------------------------


def test_norms_have_no_weight_unless_told():
    norm = {"scale": jnp.ones(4), "bias": jnp.ones(4)}
    tree = random_like({"norm": norm, "dense": dense()})
    assert set(sg.layer_scales(tree)) == {"dense"}
    scales = sg.layer_scales(tree, is_weight=lambda path, leaf: True)
    expected = {name: pooled_std(jax.tree.leaves(tree[name])) for name in tree}
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "is_weight",
    [lambda path, leaf: path[-1].key == "bias", lambda path, leaf: leaf.ndim == 1],
    ids=["path", "leaf"],
)
def test_is_weight_sees_path_and_leaf(two_layers, is_weight):
    expected = {name: pooled_std([two_layers[name]["bias"]]) for name in two_layers}
    scales = sg.layer_scales(two_layers, is_weight=is_weight)
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


# --- Stacked layers -------------------------------------------------------------------


@st.composite
def stacked_kernels(draw):
    shape = draw(st.sampled_from([(2, 3, 4), (4, 2, 3), (3, 2, 4, 2)]))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return shape, axis, draw(st.integers(0, 2**16))


@given(stacked_kernels())
def test_each_slice_is_a_layer(example):
    shape, axis, seed = example
    kernel = random_like(jnp.ones(shape), seed)
    slices = np.moveaxis(np.asarray(kernel, np.float64), axis, 0)
    expected = slices.reshape(len(slices), -1).std(axis=1)
    scales = sg.layer_scales({"blocks": {"kernel": kernel}}, stack_axis=axis)
    chex.assert_trees_all_close(scales, {"blocks": expected}, rtol=1e-5)


@pytest.mark.parametrize("stack_axis", [0, -1])
def test_a_stacked_bias_is_no_weight(stack_axis):
    tree = random_like(dense(3, 4, 5))
    tree = jax.tree.map(lambda x: jnp.moveaxis(x, 0, stack_axis), tree)
    kernel = np.moveaxis(np.asarray(tree["kernel"], np.float64), stack_axis, 0)
    expected = {".": kernel.reshape(5, -1).std(axis=1)}
    scales = sg.layer_scales(tree, stack_axis=stack_axis)
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


def only_blocks(path, leaf):
    del leaf
    return 0 if path[0].key == "blocks" else None


def test_stack_axis_callable():
    tree = random_like({"blocks": dense(4, 4, 5), "head": dense(4, 1)})
    expected = {
        "blocks": np.std(np.asarray(tree["blocks"]["kernel"], np.float64), axis=(1, 2)),
        "head": pooled_std([tree["head"]["kernel"]]),
    }
    scales = sg.layer_scales(tree, stack_axis=only_blocks)
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


def test_stacked_and_plain_leaves_of_one_module_are_two_layers():
    module = {"experts": jnp.ones((5, 3, 3)), "router": jnp.ones((3, 5))}
    tree = random_like({"moe": module})["moe"]
    scales = sg.layer_scales(
        {"moe": tree}, stack_axis=lambda path, leaf: 0 if leaf.ndim == 3 else None
    )
    expected = {
        "moe": np.std(np.asarray(tree["experts"], np.float64), axis=(1, 2)),
        "moe (2)": pooled_std([tree["router"]]),
    }
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


@pytest.mark.parametrize("stack_axis", [0, only_blocks], ids=["int", "callable"])
def test_group_by_tree_pools_the_slices(stack_axis):
    tree = random_like({"blocks": dense(4, 4, 5)})
    scales = sg.layer_scales(tree, group_by="tree", stack_axis=stack_axis)
    # The stacked bias stays without weight: stack axes are not counted.
    expected = {".": pooled_std([tree["blocks"]["kernel"]])}
    chex.assert_trees_all_close(scales, expected, rtol=1e-5)


@pytest.mark.parametrize("stack_axis", [2, -3])
def test_stack_axis_out_of_range_names_the_leaf(two_layers, stack_axis):
    message = rf"stack_axis {stack_axis} .*'first/bias' of shape \(4,\)"
    with pytest.raises(ValueError, match=message):
        sg.layer_scales(two_layers, stack_axis=stack_axis)


def test_scalars_have_no_stack_axis():
    with pytest.raises(ValueError, match=r"'temperature' of shape \(\)"):
        sg.layer_scales({"temperature": jnp.ones(())}, stack_axis=0)


def test_different_lengths_within_a_layer():
    tree = {"blocks": {"kernel": jnp.ones((5, 3, 3)), "bias": jnp.ones((6, 3))}}
    with pytest.raises(ValueError, match=r"'blocks/bias' and 5 in 'blocks/kernel'"):
        sg.layer_scales(tree, stack_axis=0)
    # Layers of their own may differ.
    assert set(sg.layer_scales(tree, stack_axis=0, group_by="leaf")) == {
        "blocks/kernel"
    }
