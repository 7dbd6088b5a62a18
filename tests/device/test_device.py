"""The library on the CPU, as part of the suite, or on an accelerator:

python -m pytest tests/device --platform gpu

Results are compared with the definition in float64 NumPy. A device may sum in any
order, and may flush subnormal numbers to zero: no gradient here has any.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from definitions import assert_close, balanced, random_layer, rescaled, scale
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import stablegrad_optax as sg

WIDTHS = 40, 600  # of layers that fit into a cache, and of layers that do not
TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2, "float16": 2e-3}


def layers(size=1.0, dtype="float32"):
    return [random_layer(n, n, size, dtype, seed=n) for n in WIDTHS]


@functools.cache
def jitted_update(**options):
    tx = sg.stablegrad(**options)
    return jax.jit(lambda grads: tx.update(grads, tx.init(grads))[0])


@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [
        ("float32", (-17, -9, 0, 8, 14)),
        ("bfloat16", (-17, -9, 0, 8, 14)),
        ("float16", (-3, 0, 3)),
    ],
)
def test_scales_and_updates_are_those_of_the_definition(dtype, exponents):
    grads = {str(e): layers(10.0**e, dtype) for e in exponents}
    updates = jitted_update(reference=0.5)(grads)
    expected = jax.tree.map(
        lambda layer: rescaled(layer, 0.5), grads, is_leaf=lambda x: "kernel" in x
    )
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert_close(updates, expected, TOLERANCE[dtype])
    for statistic in ("std", "rms"):
        scales = jax.jit(functools.partial(sg.layer_scales, statistic=statistic))(grads)
        for name, found in scales.items():
            exponent, i = name.split("/")
            kernel = grads[exponent][int(i)]["kernel"]
            np.testing.assert_allclose(found, scale(kernel, statistic), rtol=2e-5)


@pytest.mark.parametrize("width", [1, *WIDTHS])
def test_constants_known_while_compiling(width):
    constants = np.array([0.0, 1e-14, -1.0, 1e9], np.float32)

    @jax.jit
    def update():
        return [jitted_update()(jnp.full((width, width), c)) for c in constants]

    expected = np.sign(constants) * (16 if width > 1 else 1)
    np.testing.assert_allclose([x[0, 0] for x in update()], expected, rtol=1e-3)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_zeros_pass_and_what_is_not_finite_stays_in_its_layer(bad):
    broken = [
        x | {"kernel": x["kernel"] * 0 if bad == 0 else x["kernel"].at[1, 2].set(bad)}
        for x in layers()
    ]
    got, untouched = jitted_update()((broken, layers()))
    if bad == 0:
        jax.tree.map(np.testing.assert_array_equal, got, broken)
    else:
        for layer in got:
            kernel = np.array(layer["kernel"])
            assert not np.isfinite(kernel[1, 2])
            kernel[1, 2] = kernel[0, 0]
            others = np.concatenate([kernel.ravel(), layer["bias"]])
            assert (np.isnan(others) if np.isnan(bad) else others == 0).all()
    assert_close(untouched, list(map(rescaled, layers())), 2e-5)


def test_stacked_layers_are_as_unstacked():
    members = [layers(size) for size in (1e-15, 1e-3, 1.0, 1e12)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
    expected = [list(map(rescaled, member)) for member in members]
    expected = jax.tree.map(lambda *x: np.stack(x), *expected)
    assert_close(jitted_update(stack_axis=0)(stacked), expected, 2e-5)


def test_balanced_terms_and_their_memory():
    importance = {"a": 1.0, "b": 2.0, "c": 0.5}
    tx = sg.balance_terms(tuple(importance), importance)
    update, state = jax.jit(tx.update), tx.init(None)
    sizes = {"a": 1e-14, "b": 1.0, "c": 1e11}
    grads = [
        {name: layers(size * 0.5**step) for name, size in sizes.items()}
        for step in range(3)
    ]
    values = [{"a": 1e-12, "b": 2.0, "c": 1e10}] * 3
    steps = balanced(grads, values, importance, decay=0.99, power=0.5)
    for g, value, (expected, weights, *_) in zip(grads, values, steps, strict=True):
        total, state = update(g, state, values=value)
        np.testing.assert_allclose(
            [state.weights[name] for name in "abc"], [*weights.values()], rtol=1e-4
        )
        assert_close(total, expected, 1e-4)
    # All terms are one draw, at several scales.
    cosines = jax.jit(sg.term_alignment)(grads[0])
    np.testing.assert_allclose(cosines, 1, atol=1e-4)


@pytest.mark.parametrize("mapped", [False, True], ids=["jit", "shard_map"])
def test_sharded_over_all_devices_no_gradient_is_gathered(mapped):
    mesh = Mesh(np.array(jax.local_devices()), ("model",))
    rows = PartitionSpec("model")
    widths = [-(-n // mesh.size) * mesh.size for n in WIDTHS]
    grads = [random_layer(n, n, seed=n) for n in widths]
    sharded = jax.device_put(grads, NamedSharding(mesh, rows))
    update = jitted_update(axis_name="model" if mapped else None)
    if mapped:
        update = jax.shard_map(update, mesh=mesh, in_specs=rows, out_specs=rows)
    compiled = jax.jit(update).lower(sharded).compile()
    assert "all-gather" not in compiled.as_text()
    assert_close(compiled(sharded), list(map(rescaled, grads)), 2e-5)


def losses_of_training(front, dtype):
    params = [random_layer(n, m, n**-0.5, dtype) for n, m in [(2, 32), (32, 1)]]
    points = random_layer(64, 2, dtype=dtype)["kernel"]
    tx = optax.chain(front, optax.adam(1e-3))

    def loss(params):
        x = points
        for layer in params:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return jnp.mean((x - jnp.sin(3 * points[:, :1])) ** 2)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    with jax.default_matmul_precision("highest"):  # accelerators default to less
        return jax.lax.scan(step, (params, tx.init(params)), length=8)[1]


def test_training_is_that_of_the_definition_in_float64_on_the_cpu():
    def definition(grads, params):
        def of_layer(layer):
            return jax.tree.map(lambda g: g / jnp.std(layer["kernel"]), layer)

        return list(map(of_layer, grads))

    losses = losses_of_training(sg.stablegrad(), "float32")
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        expected = losses_of_training(optax.stateless(definition), "float64")
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
