"""Several devices: the result of one, and only statistics travel between them."""

import functools
import itertools

import chex
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import stablegrad_optax as sg

DEPTH = 8  # layers in a stack: one for each device

FSDP = pytest.mark.compatible("parallelism", "jit, FSDP-sharded")
TENSOR_PARALLEL = pytest.mark.compatible("parallelism", "jit, tensor-parallel")
LAYER_SHARDED = pytest.mark.compatible("parallelism", "jit, layer-sharded (stacked)")
EXPLICIT = pytest.mark.compatible("parallelism", "jit, `AxisType.Explicit`")
SHARD_MAP = pytest.mark.compatible("parallelism", "`shard_map` with `axis_name`")
DATA_PARALLEL = pytest.mark.compatible("parallelism", "data parallel (`pmean`)")
SEEDS = pytest.mark.compatible("parallelism", "`vmap` over seeds")
PMAP = [
    pytest.mark.compatible("parallelism", "`pmap`"),
    pytest.mark.skipif(not hasattr(jax, "pmap"), reason="this JAX has no pmap"),
]

both_statistics = pytest.mark.parametrize("statistic", ["std", "rms"])


@functools.cache
def gradients(seed=0, scale=1e-3):
    """A wide layer and a tall one, of different scales.

    A layer of up to 2**14 elements is measured in units of its largest magnitude at
    once, a larger one only if needed; the tall one is larger even where each of 8
    devices sees its part only.
    """
    rng = np.random.default_rng(seed)

    def layer(shape, scale):
        return {
            "kernel": jnp.asarray(rng.normal(0.2, 1, shape) * scale, jnp.float32),
            "bias": jnp.asarray(rng.normal(0, 1, shape[1]) * scale, jnp.float32),
        }

    return {"small": layer((16, 32), 1.0), "large": layer((512, 384), scale)}


def many_gradients():
    return [gradients(seed, 0.1**seed) for seed in range(DEPTH)]


@functools.cache
def stacked_gradients():
    """The same in one tree, with a stack axis in front of each leaf."""
    return jax.tree.map(lambda *x: jnp.stack(x), *many_gradients())


def mesh(shape, names=("data", "model"), **options):
    devices = np.array(jax.devices()[: np.prod(shape)])
    return Mesh(devices.reshape(shape), names[: len(shape)], **options)


def update(grads, **options):
    tx = sg.stablegrad(0.5, **options)
    return tx.update(grads, tx.init(grads))[0]


@functools.cache
def jitted_update(**options):
    return jax.jit(functools.partial(update, **options))


def shardings(tree, mesh, spec):
    return jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), tree)


def assert_close(updates, expected, **options):
    chex.assert_trees_all_close(
        jax.device_get(updates), jax.device_get(expected), **({"rtol": 1e-5} | options)
    )


def assert_sharded(tree, shardings):
    def is_kept(x, sharding):
        return x.sharding.is_equivalent_to(sharding, x.ndim)

    assert all(jax.tree.leaves(jax.tree.map(is_kept, tree, shardings)))


def assert_only_statistics_travel(compiled, grads, stack_axis, axes):
    """No gradient or part of one crosses devices, only statistics of layers.

    Each has at most one number per layer of a stack, and there are not many.
    """
    slices = 1 if stack_axis is None else DEPTH
    moved = hlo.collectives(compiled.as_text())
    assert {collective.kind for collective in moved} <= {"all-reduce"}
    sizes = [size for collective in moved for size in collective.sizes]
    assert max(sizes, default=0) <= slices
    # A large layer has two sums in one pass, and a maximum and two more sums where
    # squares leave the range; each is reduced over one mesh axis at a time.
    assert sum(sizes) <= axes * (6 * slices + 1) * len(grads)
    return moved


# --- jit: global arrays, of which each device holds a part ---


def over_largest_axis(leaf):
    """Fully sharded data parallel: each leaf is split over its largest axis."""
    names = [None] * leaf.ndim
    names[int(np.argmax(leaf.shape))] = "data"
    return P(*names)


def over_columns(leaf):
    return P(*[None] * (leaf.ndim - 1), "data")


def over_rows(leaf):
    """The bias, which is added after the sum over rows, is on all devices."""
    return P("data", None) if leaf.ndim == 2 else P(None)


def over_both_axes(leaf):
    return P("data", "model") if leaf.ndim == 2 else P("model")


def over_the_stack(leaf):
    return P("data", *[None] * (leaf.ndim - 1))


def within_the_stack(leaf):
    return P(None, *over_largest_axis(leaf[0]))


def over_the_stack_and_columns(leaf):
    return P("data", *[None] * (leaf.ndim - 2), "model")


ONE_AXIS = [
    (over_largest_axis, None, FSDP),
    (over_columns, None, TENSOR_PARALLEL),
    (over_rows, None, TENSOR_PARALLEL),
    (over_the_stack, 0, LAYER_SHARDED),
    (within_the_stack, 0, LAYER_SHARDED),
]
TWO_AXES = [
    (over_both_axes, None, [FSDP, TENSOR_PARALLEL]),
    (over_the_stack_and_columns, 0, LAYER_SHARDED),
]


@pytest.mark.parametrize(
    ("spec", "stack_axis", "shape", "statistic"),
    [
        pytest.param(spec, stack_axis, shape, statistic, marks=marks)
        for layouts, shape, statistic in [
            (ONE_AXIS, (1,), "std"),
            (ONE_AXIS, (2,), "std"),
            (ONE_AXIS, (8,), "std"),
            (ONE_AXIS, (8,), "rms"),
            (TWO_AXES, (2, 4), "std"),
            (TWO_AXES, (2, 4), "rms"),
        ]
        for spec, stack_axis, marks in layouts
    ],
)
def test_jit(spec, stack_axis, shape, statistic):
    grads = gradients() if stack_axis is None else stacked_gradients()
    function = jitted_update(statistic=statistic, stack_axis=stack_axis)
    placed = shardings(grads, mesh(shape), spec)
    sharded = jax.device_put(grads, placed)
    compiled = function.lower(sharded).compile()
    updates = compiled(sharded)
    assert_close(updates, function(grads))
    assert_sharded(updates, placed)
    moved = assert_only_statistics_travel(compiled, grads, stack_axis, len(shape))
    # Layers that are whole on one device need no sum over devices. Others do: the
    # check above had something to look at.
    if shape != (1,) and spec is not over_the_stack:
        assert moved


@FSDP
@pytest.mark.parametrize("scale", [1e-30, 1e30])
@both_statistics
def test_jit_beyond_the_range_of_squares(scale, statistic):
    """Where one pass is not enough."""
    grads = gradients(0, scale)
    sharded = jax.device_put(grads, shardings(grads, mesh((8,)), over_largest_axis))
    function = jitted_update(statistic=statistic)
    updates = function(sharded)
    chex.assert_tree_all_finite(updates)
    assert_close(updates, function(grads))


@FSDP
@pytest.mark.parametrize("layer", ["small", "large"])
def test_jit_a_nan_on_one_device_reaches_its_layer_on_all(layer):
    grads = gradients()
    kernel = grads[layer]["kernel"].at[0, 0].set(np.nan)
    broken = grads | {layer: grads[layer] | {"kernel": kernel}}
    sharded = jax.device_put(broken, shardings(grads, mesh((8,)), over_largest_axis))
    updates = jitted_update()(sharded)
    expected = dict(jitted_update()(grads))
    expected[layer] = jax.tree.map(lambda g: g * np.nan, grads[layer])
    assert_close(updates, expected)


def network():
    """Parameters of a tanh network from 8 inputs to 8 outputs."""
    rng = np.random.default_rng(0)
    return [
        {
            "kernel": jnp.asarray(rng.normal(0, n**-0.5, (n, m)), jnp.float32),
            "bias": jnp.zeros(m),
        }
        for n, m in itertools.pairwise((8, 256, 256, 8))
    ]


def batch(size=64):
    x = np.random.default_rng(1).normal(size=(size, 8)).astype(np.float32)
    return x, np.sin(2 * x)


def predict(params, x, y):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def mean_squared(predictions, x, y):
    return jnp.mean((predictions - y) ** 2)


def loss(params, x, y):
    return mean_squared(predict(params, x, y), x, y)


def train(params, data, steps=8):
    """Loss and reference of each step; the parameters and first moments at the end."""
    tx = optax.chain(sg.stablegrad(), optax.adam(3e-3))
    value_and_grad = sg.value_and_grad_with_reference(predict, mean_squared)

    @jax.jit
    def step(params, state, data):
        value, grads, reference = value_and_grad(params, *data)
        updates, state = tx.update(grads, state, params, reference=reference)
        return optax.apply_updates(params, updates), state, (value, reference)

    state = jax.jit(tx.init)(params)
    history = []
    for _ in range(steps):
        params, state, measured = step(params, state, data)
        history.append(jax.device_get(measured))
    return np.array(history), (params, optax.tree_utils.tree_get(state, "mu"))


@functools.cache
def history_of_one_device():
    history, _ = train(network(), batch())
    losses = history[:, 0]
    assert losses[-1] < losses[0] / 2
    return history


@FSDP
@pytest.mark.parametrize("devices", [2, 8])
def test_jit_training_fully_sharded(devices):
    params, devices = network(), mesh((devices,))
    placed = shardings(params, devices, over_largest_axis)
    history, (params, moments) = train(
        jax.device_put(params, placed),
        jax.device_put(batch(), NamedSharding(devices, P("data"))),
    )
    np.testing.assert_allclose(history, history_of_one_device(), rtol=1e-5)
    assert_sharded(params, placed)
    assert_sharded(moments, placed)


@EXPLICIT
@pytest.mark.parametrize("stack_axis", [None, 0])
@both_statistics
def test_jit_with_shardings_in_types(stack_axis, statistic):
    """JAX's explicit mode, in which every operation has to know its sharding."""
    if stack_axis is None:
        grads, spec = gradients(), over_both_axes
    else:
        grads, spec = stacked_gradients(), over_the_stack_and_columns
    function = jitted_update(statistic=statistic, stack_axis=stack_axis)
    explicit = mesh((2, 4), axis_types=(AxisType.Explicit,) * 2)
    sharded = jax.device_put(grads, shardings(grads, explicit, spec))
    with jax.set_mesh(explicit):
        updates = function(sharded)
    assert_close(updates, function(grads))
    assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, sharded)


# --- shard_map: each device runs the function on its part ---


def shard_mapped(function, grads, mesh, spec, **options):
    specs = jax.tree.map(spec, grads)
    return jax.jit(
        jax.shard_map(
            function, mesh=mesh, in_specs=(specs,), out_specs=specs, **options
        )
    )


def over_all_devices(leaf):
    return P(("data", "model"))


def kernels_over_both_axes(leaf):
    """The bias is on all devices, and has to get the same gain on all."""
    return P("data", "model") if leaf.ndim == 2 else P()


def on_all_devices(leaf):
    """Every element is counted by every device, which is harmless."""
    return P()


@SHARD_MAP
@pytest.mark.parametrize(
    ("spec", "shape", "axis_name"),
    [
        (over_rows, (8,), "data"),
        (over_columns, (8,), ["data"]),
        (over_rows, (2, 4), "data"),
        (over_both_axes, (2, 4), ("data", "model")),
        (kernels_over_both_axes, (4, 2), ("model", "data")),
        (over_all_devices, (2, 4), ("data", "model")),
        (on_all_devices, (8,), "data"),
    ],
)
@pytest.mark.parametrize(("statistic", "check_vma"), [("std", True), ("rms", False)])
def test_shard_map(spec, shape, axis_name, statistic, check_vma):
    grads = gradients()
    function = shard_mapped(
        functools.partial(update, statistic=statistic, axis_name=axis_name),
        grads,
        mesh(shape),
        spec,
        check_vma=check_vma,
    )
    sharded = jax.device_put(grads, shardings(grads, mesh(shape), spec))
    compiled = function.lower(sharded).compile()
    assert_close(compiled(sharded), jitted_update(statistic=statistic)(grads))
    assert_only_statistics_travel(compiled, grads, None, len(shape))


@SHARD_MAP
@pytest.mark.parametrize(
    ("spec", "axis_name"), [(within_the_stack, "data"), (over_the_stack, None)]
)
def test_shard_map_of_stacked_layers(spec, axis_name):
    """Split within its layers, a stack needs the axis; split between them, none."""
    grads = stacked_gradients()
    function = functools.partial(update, stack_axis=0, axis_name=axis_name)
    updates = shard_mapped(function, grads, mesh((8,)), spec)(grads)
    assert_close(updates, jitted_update(statistic="std", stack_axis=0)(grads))


@SHARD_MAP
def test_shard_map_is_differentiable():
    grads = gradients()
    function = shard_mapped(
        functools.partial(update, axis_name=("data", "model")),
        grads,
        mesh((2, 4)),
        kernels_over_both_axes,
    )

    def derivative(function):
        def objective(grads):
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(function(grads)))

        # Of order one: the scale of a layer divides its derivative.
        return jax.tree.map(jnp.multiply, jax.jit(jax.grad(objective))(grads), scales)

    scales = {
        name: jax.tree.map(lambda _, s=std: s, grads[name])
        for name, std in sg.layer_scales(grads).items()
    }
    assert_close(
        derivative(function),
        derivative(jitted_update(statistic="std")),
        rtol=1e-4,
        atol=1e-4,
    )


@SHARD_MAP
def test_shard_map_layer_scales():
    grads = gradients()
    function = jax.shard_map(
        functools.partial(sg.layer_scales, axis_name="data"),
        mesh=mesh((8,)),
        in_specs=P("data"),
        out_specs=P(),
    )
    assert_close(jax.jit(function)(grads), sg.layer_scales(grads))


# --- pmap and vmap with a named axis: the parts lie along an axis of each leaf ---


@pytest.mark.parametrize("mapping", [pytest.param("pmap", marks=PMAP), "vmap"])
@both_statistics
def test_parts_along_a_mapped_axis(mapping, statistic):
    grads = gradients()
    parts = jax.tree.map(lambda g: g.reshape(8, -1, *g.shape[1:]), grads)
    function = functools.partial(update, statistic=statistic, axis_name="data")
    updates = getattr(jax, mapping)(function, axis_name="data")(parts)
    updates = jax.tree.map(lambda u, g: u.reshape(g.shape), updates, grads)
    assert_close(updates, jitted_update(statistic=statistic)(grads))


# --- Data parallel: the gradients of parts of a batch ---


def map_over_parts(mapping, function):
    """A function of parameters and 8 parts of a batch, each on its own device."""
    if mapping != "shard_map":
        mapped = getattr(jax, mapping)(function, axis_name="data", in_axes=(None, 0, 0))
        return mapped if mapping == "pmap" else jax.jit(mapped)

    def of_one(params, x, y):
        return jax.tree.map(lambda r: r[None], function(params, x[0], y[0]))

    mapped = jax.shard_map(
        of_one,
        mesh=mesh((8,)),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P("data"),
        check_vma=False,  # as in pmap, grad adds up nothing by itself
    )
    return jax.jit(mapped)


@DATA_PARALLEL
@pytest.mark.parametrize(
    "mapping", ["shard_map", pytest.param("pmap", marks=PMAP), "vmap"]
)
def test_gradients_averaged_first_are_those_of_the_full_batch(mapping):
    params, data = network(), batch()

    def average_first_and_last(params, x, y):
        grads = jax.grad(loss)(params, x, y)
        first = update(jax.lax.pmean(grads, "data"))
        return first, jax.lax.pmean(update(grads), "data")

    parts = [x.reshape(8, -1, x.shape[-1]) for x in data]
    first, last = map_over_parts(mapping, average_first_and_last)(params, *parts)
    expected = jitted_update()(jax.jit(jax.grad(loss))(params, *data))

    def error(updates):
        return max(
            np.abs(got - wanted).max()  # every device has the whole result
            for got, wanted in zip(
                jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True
            )
        )

    assert error(first) < 1e-5
    assert error(last) > 1e-2  # the gain is not linear in the gradient


@DATA_PARALLEL
def test_a_loss_averaged_over_devices_has_the_gradient_of_the_full_batch():
    """With check_vma, shard_map's default, grad itself sums over devices."""
    params, data = network(), batch()

    def gradient_and_update(params, x, y):
        grads = jax.grad(lambda p: jax.lax.pmean(loss(p, x, y), "data"))(params)
        return grads, update(grads)

    mapped = jax.shard_map(
        gradient_and_update,
        mesh=mesh((8,)),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    expected = jax.jit(jax.grad(loss))(params, *data)
    expected = expected, jitted_update()(expected)
    assert_close(jax.jit(mapped)(params, *data), expected, rtol=1e-4, atol=1e-5)


@DATA_PARALLEL
@pytest.mark.parametrize("devices", [2, 8])
def test_the_reference_of_parts_of_a_batch_is_that_of_the_whole(devices):
    """Not the average of the parts' own: the scales of their gradients differ."""
    params, (x, y) = network(), batch()
    y = y * np.linspace(0, 3, len(y), dtype=np.float32)[:, None]

    def averaged(predictions, x, y):
        return jax.lax.pmean(mean_squared(predictions, x, y), "data")

    def reference(params, x, y):
        of_all = sg.value_and_grad_with_reference(predict, averaged, axis_name="data")
        of_part = sg.value_and_grad_with_reference(predict, averaged)
        parts = of_part(params, x, y)[-1]
        return of_all(params, x, y)[-1], jax.lax.pmean(parts, "data")

    mapped = jax.shard_map(
        reference,
        mesh=mesh((devices,)),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    got, average = jax.jit(mapped)(params, x, y)
    at_once = sg.value_and_grad_with_reference(predict, mean_squared)
    expected = jax.jit(at_once)(params, x, y)[-1]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert abs(average / expected - 1) > 0.01


@pytest.mark.parametrize("axis_name", ["data", ["data", "model"]])
def test_reference_scale_over_mesh_axes(axis_name):
    rng = np.random.default_rng(0)
    fields = {
        name: rng.normal(size=(16, 3)) * np.logspace(0, -3, 16)[:, None]
        for name in ("u", "v")
    }
    fields = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), fields)
    shape = (8,) if axis_name == "data" else (4, 2)
    mapped = jax.shard_map(
        functools.partial(sg.reference_scale, axis_name=axis_name),
        mesh=mesh(shape),
        in_specs=P(axis_name if axis_name == "data" else tuple(axis_name)),
        out_specs=P(),
    )
    np.testing.assert_allclose(
        jax.jit(mapped)(fields), sg.reference_scale(fields), rtol=1e-5
    )


# --- Many networks at once ---


@SEEDS
@both_statistics
@pytest.mark.parametrize("devices", [1, 8])
def test_vmap_over_seeds(statistic, devices):
    """A network for each seed, spread over devices, which have nothing to tell."""
    seeds = many_gradients()
    stacked = jax.device_put(
        stacked_gradients(), NamedSharding(mesh((devices,)), P("data"))
    )
    function = jitted_update(statistic=statistic)
    compiled = jax.jit(jax.vmap(function)).lower(stacked).compile()
    assert_close(
        compiled(stacked), jax.tree.map(lambda *x: np.stack(x), *map(function, seeds))
    )
    assert hlo.collectives(compiled.as_text()) == []


# --- The instrument itself ---


@pytest.mark.parametrize(
    ("function", "spec", "kind", "sizes"),
    [
        (jnp.sum, P(), "all-reduce", [1]),
        (lambda x: x.sum(0), P(), "all-reduce", [24]),
        (jnp.sin, P(), "all-gather", [16 * 24]),
        (jnp.sin, P(None, "data"), "all-to-all", [16 * 24 // 8]),
        (lambda x: jnp.roll(x, 2, axis=0), P("data"), "collective-permute", [2 * 24]),
    ],
)
def test_collectives_are_read_from_a_program(function, spec, kind, sizes):
    devices = mesh((8,))
    x = jax.device_put(jnp.ones((16, 24)), NamedSharding(devices, P("data")))
    compiled = jax.jit(function, out_shardings=NamedSharding(devices, spec))
    (collective,) = hlo.collectives(compiled.lower(x).compile().as_text())
    assert collective.kind == kind
    assert sum(collective.sizes) == sum(sizes)
