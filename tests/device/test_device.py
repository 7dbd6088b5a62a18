"""StableGrad on the CPU, as part of the suite, or on an accelerator:

python -m pytest tests/device --platform gpu

Results are compared with the definition in float64 NumPy. A device may sum in any
order, and may flush subnormal numbers to zero: no gradient here has any.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import stablegrad_optax as sg

WIDTHS = 40, 600  # of layers that fit into a cache, and of layers that do not
ORDINARY = (-4, 0, 3)
EXPONENTS = [ORDINARY, (-34, -30, -22), (19, 30, 36), (-34, 0, 36)]
TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2, "float16": 2e-3}


def random_layer(width, exponent=0, dtype="float32"):
    """The gradient of a dense layer, with a mean of half its standard deviation."""
    rng = np.random.default_rng(width)

    def draw(*shape):
        x = rng.normal(0.5, 1, shape) * 10.0**exponent
        return jnp.asarray(np.where(abs(x) < jnp.finfo(dtype).tiny, 0, x), dtype)

    return {"kernel": draw(width, width), "bias": draw(width)}


def scale(kernel, statistic="std"):
    """The definition. A single element is its own scale."""
    x = np.asarray(kernel, float)
    rms = np.sqrt(np.mean(x**2))
    return rms if statistic == "rms" or x.size == 1 else max(np.std(x), rms / 16)


def rescaled(layer, reference=1.0):
    gain = reference / scale(layer["kernel"])
    return {name: gain * np.asarray(x, float) for name, x in layer.items()}


def assert_close(got, expected, tolerance=TOLERANCE["float32"]):
    """Deviations are small beside the largest element of a leaf."""

    def check(x, y):
        error = np.max(np.abs(np.asarray(x, float) - y)) / np.max(np.abs(y))
        assert float(error) <= tolerance

    jax.tree.map(check, got, expected)


@functools.cache
def jitted_update(**options):
    tx = sg.stablegrad(**options)
    return jax.jit(lambda grads: tx.update(grads, tx.init(grads))[0])


@jax.jit
def scales_of(grads):
    return {s: sg.layer_scales(grads, statistic=s) for s in ("std", "rms")}


@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [*itertools.product(("float32", "bfloat16"), EXPONENTS), ("float16", ORDINARY)],
)
def test_scales_and_updates_are_those_of_the_definition(dtype, exponents):
    grads = {
        f"{width} {i}": random_layer(width, exponent, dtype)
        for width in WIDTHS
        for i, exponent in enumerate(exponents)
    }
    updates, scales = jitted_update(reference=0.5)(grads), scales_of(grads)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    for name, layer in grads.items():
        assert_close(updates[name], rescaled(layer, 0.5), TOLERANCE[dtype])
        for statistic, found in scales.items():
            assert_close(found[name], scale(layer["kernel"], statistic))


@pytest.mark.parametrize("value", [1.0, -0.1, 1e-30, 3e33])
def test_equal_elements_have_the_least_scale_and_one_has_its_magnitude(value):
    grads = [{"kernel": jnp.full((n, n), value)} for n in (1, *WIDTHS)]
    assert_close(jitted_update()(grads), [rescaled(layer) for layer in grads])


def test_zero_layers_pass_unchanged():
    zeros = [{"kernel": jnp.zeros((n, n)), "bias": jnp.ones(n)} for n in WIDTHS]
    others = [random_layer(n) for n in WIDTHS]
    got = jitted_update()([*zeros, *others])
    jax.tree.map(np.testing.assert_array_equal, got[:2], zeros)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_visible_in_their_own_layer_only(bad):
    layers = [random_layer(n) for n in WIDTHS]
    broken = [x | {"kernel": x["kernel"].at[1, 2].set(bad)} for x in layers]
    got = jitted_update()([*broken, *layers])
    assert not any(np.isfinite(layer["kernel"]).all() for layer in got[:2])
    assert_close(got[2:], list(map(rescaled, layers)))


def test_stacked_layers_are_as_unstacked():
    layers = [[random_layer(n, e) for n in WIDTHS] for e in (-30, -3, 0, 25)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    expected = [list(map(rescaled, slices)) for slices in layers]
    expected = jax.tree.map(lambda *x: np.stack(x), *expected)
    assert_close(jitted_update(stack_axis=0)(stacked), expected)


@pytest.mark.parametrize("exponents", EXPONENTS)
def test_balanced_terms_are_those_of_the_definition(exponents):
    terms = [[random_layer(n, e) for n in WIDTHS] for e in exponents]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *terms)
    weights = [1.0, 2.0, 0.5]

    def balanced(weight, leaves):
        x = [np.asarray(leaf, float) for leaf in leaves]
        rms = scale(np.concatenate(list(map(np.ravel, x))), "rms")
        return [weight * leaf / rms for leaf in x]

    by_term = map(balanced, weights, map(jax.tree.leaves, terms))
    expected = [sum(leaves) for leaves in zip(*by_term, strict=True)]
    got = jax.jit(sg.balance_terms)(stacked, weights)
    assert_close(jax.tree.leaves(got), expected)
    # All terms are one draw, at several scales.
    cosines = jax.jit(sg.term_alignment)(stacked)
    np.testing.assert_allclose(cosines, 1, atol=1e-4)


def test_derivative():
    """Of Σ w g/σ: (w - Σ w g/σ · (g - mean)/(N σ)) / σ."""
    weights = [np.asarray(random_layer(n)["bias"] * jnp.ones((n, 1))) for n in WIDTHS]

    @jax.jit
    @jax.grad
    def gradient(grads):
        updates = jitted_update()(grads)
        return sum(jnp.sum(w * u) for w, u in zip(weights, updates, strict=True))

    for exponent in ORDINARY:
        grads = [random_layer(n, exponent)["kernel"] for n in WIDTHS]
        for got, g, w in zip(gradient(grads), grads, weights, strict=True):
            x, sigma = np.asarray(g, float), scale(g)
            along = np.sum(w * x) / sigma * (x - x.mean()) / (x.size * sigma)
            assert_close(got, (w - along) / sigma, 1e-4)
    at_zero = gradient([jnp.zeros((n, n)) for n in WIDTHS])
    assert all(np.isfinite(x).all() for x in at_zero)


@pytest.mark.parametrize("mapped", [False, True], ids=["jit", "shard_map"])
def test_sharded_over_all_devices_no_gradient_is_gathered(mapped):
    mesh = Mesh(np.array(jax.local_devices()), ("model",))
    rows = PartitionSpec("model")
    layers = [random_layer(-(-n // mesh.size) * mesh.size) for n in WIDTHS]
    sharded = jax.device_put(layers, NamedSharding(mesh, rows))
    update = jitted_update(axis_name="model" if mapped else None)
    if mapped:
        update = jax.shard_map(update, mesh=mesh, in_specs=rows, out_specs=rows)
    compiled = jax.jit(update).lower(sharded).compile()
    assert "all-gather" not in compiled.as_text()
    assert_close(compiled(sharded), list(map(rescaled, layers)))


def definition():
    """The transformation of a list of layers, in the precision of the gradients."""

    def update(layer):
        return jax.tree.map(lambda g: g / jnp.std(layer["kernel"]), layer)

    return optax.stateless(lambda grads, _: list(map(update, grads)))


def losses_of_training(front, dtype):
    rng = np.random.default_rng(0)
    layers = [
        {"kernel": rng.normal(0, n**-0.5, (n, m)), "bias": np.zeros(m)}
        for n, m in itertools.pairwise([2, 32, 32, 1])
    ]
    points = rng.uniform(-1, 1, (64, 2))
    tx = optax.chain(front, optax.adam(1e-3))

    def loss(layers, x, targets):
        for layer in layers:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return jnp.mean((x - targets) ** 2)

    @jax.jit
    def step(params, state, *batch):
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    batch = jnp.asarray(points, dtype), jnp.asarray(np.sin(3 * points[:, :1]), dtype)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), layers)
    state, losses = tx.init(params), []
    with jax.default_matmul_precision("highest"):  # accelerators default to less
        for _ in range(8):
            params, state, value = step(params, state, *batch)
            losses.append(float(value))
    return losses


def test_training_is_that_of_the_definition_in_float64_on_the_cpu():
    losses = losses_of_training(sg.stablegrad(), jnp.float32)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        expected = losses_of_training(definition(), jnp.float64)
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
