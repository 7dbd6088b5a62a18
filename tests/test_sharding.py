"""Several devices: the result of one, and only statistics travel between them.

`FUNCTIONS` are what the library does with gradients. Under jit, in shard_map and with
shardings in types, each must return what it returns on one device.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from definitions import random_layer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import stablegrad_optax as sg

DEPTH = 8  # layers in a stack: one for each device
TERMS = ("data", "residual")


@functools.cache
def gradients(seed=0):
    """A small layer and a large one, of different scales."""
    return {
        "small": random_layer(16, 32, 1.0, seed=seed),
        "large": random_layer(64, 48, 1e2, seed=seed),
    }


@functools.cache
def stacked_gradients():
    """Many in one tree, with a stack axis in front of each leaf."""
    return jax.tree.map(lambda *x: jnp.stack(x), *map(gradients, range(DEPTH)))


@functools.cache
def gradients_of_terms():
    return {name: gradients(seed) for seed, name in enumerate(TERMS)}


def stablegrad(grads, **options):
    tx = sg.stablegrad(0.5, **options)
    return tx.update(grads, tx.init(grads))[0]


def balance_terms(grads, **options):
    tx = sg.balance_terms(TERMS, **options)
    values = {"data": 1.0, "residual": 4.0}
    return tx.update(grads, tx.init(None), values=values)[0]


class Function(NamedTuple):
    call: Callable
    gradients: Callable  # that it is called with
    like: Callable = lambda grads: {}  # the gradient that its result is sharded as
    largest: int = 1  # of the statistics that travel

    @functools.cache  # noqa: B019
    def on_one_device(self):
        return jax.device_get(jax.jit(self.call)(self.gradients()))


def itself(grads):
    return grads


FUNCTIONS = {
    "stablegrad": Function(stablegrad, gradients, itself),
    "stablegrad-rms": Function(
        functools.partial(stablegrad, statistic="rms"), gradients, itself
    ),
    "stablegrad-stacked": Function(
        functools.partial(stablegrad, stack_axis=0), stacked_gradients, itself, DEPTH
    ),
    "layer_scales": Function(sg.layer_scales, gradients),
    "balance_terms": Function(
        balance_terms, gradients_of_terms, lambda grads: grads["data"]
    ),
    "term_scales": Function(sg.term_scales, gradients_of_terms),
    "term_alignment": Function(
        sg.term_alignment, gradients_of_terms, largest=len(TERMS) ** 2
    ),
}
FLAT = [name for name in FUNCTIONS if name != "stablegrad-stacked"]
STACKED = ["stablegrad-stacked"]
TRANSFORMATIONS = ["stablegrad", "balance_terms"]


def mesh(shape, names=("data", "model"), **options):
    devices = np.array(jax.devices()[: math.prod(shape)])
    return Mesh(devices.reshape(shape), names[: len(shape)], **options)


# How kernels and biases are split.
LAYOUTS = {
    "fsdp": (P("data", None), P("data")),
    "columns": (P(None, "data"), P("data")),
    "rows": (P("data", None), P()),  # a bias is added after the sum over rows
    "rows and columns": (P("data", "model"), P("model")),
    "kernels": (P("data", "model"), P()),
    "all axes": (P(("data", "model")), P(("data", "model"))),
    "replicated": (P(), P()),
    "stack": (P("data"), P("data")),
    "within the stack": (P(None, None, "data"), P(None, "data")),
    "stack and columns": (P("data", None, "model"), P("data", "model")),
}


def specs(tree, layout):
    kernel, bias = LAYOUTS[layout]
    return jax.tree_util.tree_map_with_path(
        lambda path, _: kernel if path[-1].key == "kernel" else bias, tree
    )


def place(tree, mesh, layout):
    shardings = jax.tree.map(lambda p: NamedSharding(mesh, p), specs(tree, layout))
    return jax.device_put(tree, shardings)


def assert_close(got, expected, **options):
    options = {"rtol": 1e-5, "atol": 1e-5} | options
    chex.assert_trees_all_close(jax.device_get(got), expected, **options)


def assert_same_shardings(tree, like):
    def is_kept(x, like):
        return x.sharding.is_equivalent_to(like.sharding, x.ndim)

    assert all(jax.tree.leaves(jax.tree.map(is_kept, tree, like)))


# An asynchronous collective is two instructions, of which "-start" has the shapes.
COLLECTIVE = re.compile(
    r" = (?P<result>.*?) (?P<kind>(ragged-)?all-(gather|reduce|to-all)"
    r"|collective-(broadcast|permute)|reduce-scatter)(-start)?\("
)
SHAPE = re.compile(r"\b[a-z]+\d*[a-z\d]*\[([\d,]*)\]")


def collectives(compiled):
    """What a program sends between devices: the kind, and the sizes of the arrays."""
    return [
        (
            match["kind"],
            [
                math.prod(int(n) for n in shape.split(",") if n)
                for shape in SHAPE.findall(match["result"])
            ],
        )
        for match in COLLECTIVE.finditer(compiled.as_text())
    ]


@pytest.mark.parametrize(
    ("function", "spec", "kind", "size"),
    [
        (jnp.sum, P(), "all-reduce", 1),
        (lambda x: x.sum(0), P(), "all-reduce", 24),
        (jnp.sin, P(), "all-gather", 16 * 24),
        (jnp.sin, P(None, "data"), "all-to-all", 16 * 24 // 8),
        (lambda x: jnp.roll(x, 2, axis=0), P("data"), "collective-permute", 2 * 24),
    ],
)
def test_collectives_are_read_from_a_program(function, spec, kind, size):
    x = jax.device_put(jnp.ones((16, 24)), NamedSharding(mesh((8,)), P("data")))
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh((8,)), spec))
    ((found, sizes),) = collectives(jitted.lower(x).compile())
    assert (found, sum(sizes)) == (kind, size)


def assert_only_statistics_travel(compiled, largest):
    """No gradient or part of one crosses devices, however small it is."""
    moved = collectives(compiled)
    assert {kind for kind, _ in moved} <= {"all-reduce"}
    assert max((size for _, sizes in moved for size in sizes), default=0) <= largest
    return moved


# --- jit: global arrays, of which each device holds a part ---


@pytest.mark.parametrize(
    ("name", "layout", "shape", "axis_type"),
    [
        (name, layout, shape, axis_type)
        for names, layout, shape, axis_type in [
            (TRANSFORMATIONS, "fsdp", (1,), "Auto"),
            (TRANSFORMATIONS, "fsdp", (2,), "Auto"),
            (FLAT, "fsdp", (8,), "Auto"),
            (TRANSFORMATIONS, "rows", (8,), "Auto"),
            (TRANSFORMATIONS, "rows and columns", (2, 4), "Auto"),
            (FLAT, "rows and columns", (2, 4), "Explicit"),
            (STACKED, "stack", (8,), "Auto"),
            (STACKED, "within the stack", (8,), "Auto"),
            (STACKED, "stack and columns", (2, 4), "Explicit"),
        ]
        for name in names
    ],
)
def test_jit(name, layout, shape, axis_type):
    """Also in JAX's explicit mode, where shardings are in the types."""
    function = FUNCTIONS[name]
    devices = mesh(shape, axis_types=(getattr(AxisType, axis_type),) * len(shape))
    sharded = place(function.gradients(), devices, layout)
    with jax.set_mesh(devices):
        compiled = jax.jit(function.call).lower(sharded).compile()
    result = compiled(sharded)
    assert_close(result, function.on_one_device())
    if like := function.like(sharded):
        assert_same_shardings(result, like)
    moved = assert_only_statistics_travel(compiled, function.largest)
    # Layers that are whole on one device need no sum over devices. Others do: the
    # check above had something to look at.
    assert bool(moved) == (shape != (1,) and layout != "stack")


# --- shard_map: each# --- shard_map: each device runs the function on its part ---


@pytest.mark.parametrize(
    ("name", "layout", "shape", "axis_name"),
    [
        ("stablegrad", "rows", (8,), "data"),
        ("stablegrad-rms", "columns", (8,), ["data"]),
        ("stablegrad", "rows", (2, 4), "data"),
        ("stablegrad", "kernels", (4, 2), ("model", "data")),
        ("stablegrad", "replicated", (8,), "data"),
        ("stablegrad-stacked", "within the stack", (8,), "data"),
        # Split between its layers, a stack needs no axis.
        ("stablegrad-stacked", "stack", (8,), None),
        ("layer_scales", "fsdp", (8,), "data"),
        ("balance_terms", "fsdp", (8,), "data"),
        ("balance_terms", "all axes", (2, 4), ("data", "model")),
        ("term_scales", "fsdp", (8,), "data"),
        ("term_alignment", "all axes", (4, 2), ["data", "model"]),
    ],
)
def test_shard_map(name, layout, shape, axis_name):
    function = FUNCTIONS[name]
    sharded = place(function.gradients(), mesh(shape), layout)
    mapped = in_shard_map(function, sharded, layout, shape, axis_name)
    compiled = jax.jit(mapped).lower(sharded).compile()
    assert_close(compiled(sharded), function.on_one_device())
    assert_only_statistics_travel(compiled, function.largest)


def in_shard_map(function, sharded, layout, shape, axis_name):
    return jax.shard_map(
        functools.partial(function.call, axis_name=axis_name),
        mesh=mesh(shape),
        in_specs=(specs(sharded, layout),),
        out_specs=specs(function.like(sharded), layout) or P(),
    )


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_derivative_through_shard_map_is_that_on_one_device(name):
    function = FUNCTIONS[name]
    sharded = place(function.gradients(), mesh((2, 4)), "all axes")
    mapped = in_shard_map(function, sharded, "all axes", (2, 4), ("data", "model"))

    def derivative(update):
        def objective(grads):
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(update(grads)))

        return jax.device_get(jax.jit(jax.grad(objective))(sharded))

    # The scale of a gradient divides its derivative.
    assert_close(derivative(mapped), derivative(function.call), rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not hasattr(jax, "pmap"), reason="this JAX has no pmap")
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_parts_along_a_mapped_axis(name):
    function = FUNCTIONS[name]
    grads = function.gradients()
    parts = jax.tree.map(lambda g: g.reshape(8, -1, *g.shape[1:]), grads)
    of_part = functools.partial(function.call, axis_name="data")
    result = jax.pmap(of_part, axis_name="data")(parts)
    got = jax.tree.map(lambda u, g: u.reshape(g.shape), result, function.like(grads))
    assert_close(got, function.on_one_device())


# --- Data parallel: the gradients of parts of a batch ---


def network():
    """Parameters of a tanh network from 8 inputs to 8 outputs."""
    widths = itertools.pairwise((8, 32, 8))
    return [random_layer(n, m, n**-0.5, seed=n) for n, m in widths]


def batch(size=64):
    x = np.random.default_rng(1).normal(size=(size, 8)).astype(np.float32)
    return x, np.sin(2 * x)


def predict(params, x, y):
    first, last = params
    x = jnp.tanh(x @ first["kernel"] + first["bias"])
    return x @ last["kernel"] + last["bias"]


def mean_squared(predictions, x, y):
    return jnp.mean((predictions - y) ** 2)


def losses(params, x, y):
    return {
        "data": mean_squared(predict(params, x, y), x, y),
        "residual": jnp.mean(jnp.sin(predict(params, x + 1, y)) ** 2),
    }


def on_parts_of_a_batch(function, **options):
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh((8,)),
            in_specs=(P(), P("data"), P("data")),
            out_specs=P(),
            **options,
        )
    )


def average(x):
    return jax.lax.pmean(x, "data")


def test_averages_are_taken_first():
    """Of gradients and values; neither transformation is linear in them."""

    def update(params, x, y, average=lambda x: x):
        values, grads = average(sg.value_and_grad_of_terms(losses)(params, x, y))
        tx = optax.chain(sg.balance_terms(TERMS), sg.stablegrad())
        return tx.update(grads, tx.init(params), values=values)[0]

    def first_and_last(*args):
        return update(*args, average), average(update(*args))

    # check_vma=False: as in pmap, grad adds up nothing by itself.
    mapped = on_parts_of_a_batch(first_and_last, check_vma=False)
    first, last = mapped(network(), *batch())
    expected = jax.device_get(jax.jit(update)(network(), *batch()))
    assert_close(first, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        assert_close(last, expected, rtol=1e-2, atol=1e-2)


def test_a_loss_averaged_over_devices_has_the_gradient_of_the_full_batch():
    """With check_vma, shard_map's default, grad itself sums over devices."""
    mapped = on_parts_of_a_batch(
        sg.value_and_grad_of_terms(lambda *args: average(losses(*args)))
    )
    expected = jax.jit(sg.value_and_grad_of_terms(losses))(network(), *batch())
    assert_close(mapped(network(), *batch()), jax.device_get(expected), rtol=1e-4)


def test_the_reference_of_parts_of_a_batch_is_that_of_the_whole():
    """Not the average of the parts' own: the scales of their gradients differ."""
    x, y = batch()
    data = x, y * np.linspace(0, 3, len(y), dtype=np.float32)[:, None]

    def averaged(predictions, x, y):
        return average(mean_squared(predictions, x, y))

    def reference(*args):
        of_all = sg.value_and_grad_with_reference(predict, averaged, axis_name="data")
        of_part = sg.value_and_grad_with_reference(predict, averaged)
        return of_all(*args)[-1], average(of_part(*args)[-1])

    got, mean_of_parts = on_parts_of_a_batch(reference)(network(), *data)
    at_once = sg.value_and_grad_with_reference(predict, mean_squared)
    expected = jax.jit(at_once)(network(), *data)[-1]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert abs(mean_of_parts / expected - 1) > 0.01


# --- Many networks at once ---


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_vmap_over_seeds(name):
    """A network for each seed, spread over devices, which have nothing to tell."""
    function = FUNCTIONS[name].call
    grads = FUNCTIONS[name].gradients()
    seeds = [jax.tree.map(lambda g, s=s: (s + 1) * g, grads) for s in range(8)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    stacked = jax.device_put(stacked, NamedSharding(mesh((8,)), P("data")))
    compiled = jax.jit(jax.vmap(function)).lower(stacked).compile()
    alone = jax.jit(function)
    expected = jax.tree.map(lambda *x: np.stack(x), *map(alone, seeds))
    assert_close(compiled(stacked), expected)
    assert collectives(compiled) == []
