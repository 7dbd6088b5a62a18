"""The transformation: γ = ρ / σ for each layer, and nothing else changed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from definitions import assert_close, random_layer, rescaled, scale, wide

import stablegrad_optax as sg


def network(width=4, dtype="float32"):
    """Gradients of three layers of very different scales."""
    scales = {"Dense_0": 1.0, "Dense_1": 1e-2, "Dense_2": 3e2}
    return {
        name: random_layer(width, width, scale, dtype, seed)
        for seed, (name, scale) in enumerate(scales.items())
    }


def update(grads, reference=None, **options):
    tx = sg.stablegrad(**options)
    # A library must not promote its users' dtypes behind their backs.
    with jax.numpy_dtype_promotion("strict"):
        updates, state = tx.update(grads, tx.init(grads), reference=reference)
    assert state == optax.EmptyState()
    return updates


apply = jax.jit(update)


# --- The formula ---


@pytest.mark.parametrize("transform", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("statistic", ["std", "rms"])
def test_the_update_is_the_formula(transform, statistic):
    tx = sg.stablegrad(40.0, statistic=statistic)
    updates, _ = transform(tx.update)(network(), tx.init(None))
    expected = {n: rescaled(g, 40.0, statistic) for n, g in network().items()}
    assert_close(updates, expected)


@pytest.mark.parametrize("default", [None, 7.0])
def test_the_reference_of_a_step_replaces_that_of_the_constructor(default):
    tx = sg.stablegrad(default)
    updates, _ = tx.update(network(), tx.init(None), reference=jnp.float32(2.0))
    assert_close(updates, {n: rescaled(g, 2.0) for n, g in network().items()})


def test_python_and_numpy_scalars():
    grads = {"kernel": np.array([[1, 3], [1, 3]], np.float32), "bias": 2.0}
    updates = update(grads | {"temperature": {"t": 0.5}})
    np.testing.assert_allclose(updates["bias"], 2.0, rtol=1e-6)
    assert updates["temperature"]["t"] == 0.5


# --- What is small, large, zero or not finite ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beyond_the_range_it_is_finite_and_not_larger_than_it_came(dtype):
    unit = random_layer(8, 8)["kernel"] / 4
    for exponent in range(16, 39):
        kernel = (unit * np.float32(10.0**exponent)).astype(dtype)
        got = wide(apply({"kernel": kernel})["kernel"])
        assert np.isfinite(got).all()
        assert (np.abs(got) <= np.abs(wide(kernel))).all()
    for exponent in range(-37, -18):
        kernel = (unit * np.float32(10.0**exponent)).astype(dtype)
        got = apply({"kernel": kernel})["kernel"]
        if (got != kernel).any():
            assert 0.5 < np.std(wide(got)) < 17


def test_large_references_and_biases_are_finite():
    small = random_layer(4, 4, 1e-17) | {"bias": jnp.array([3e38, -1.0, 0.0, 1e-17])}
    chex.assert_tree_all_finite(apply(network() | {"small": small}, 1e37))


def test_the_update_is_continuous_where_elements_are_nearly_equal():
    """An optimizer must not see a jump of the gain where the gradient has none."""
    ramp = jnp.linspace(0.0, 1.0, 16).reshape(4, 4)
    # From elements that are equal to an ordinary spread.
    spreads = np.geomspace(1e-3, 10.0, 81, dtype=np.float32)
    gains = [apply({"kernel": 1 + s * ramp})["kernel"][0, 0] for s in spreads]
    assert gains[0] == pytest.approx(16, rel=2e-3)
    assert np.abs(np.diff(np.log(gains))).max() < 0.2


def test_the_derivative_is_that_of_the_formula():
    x, weights = (random_layer(6, 5, seed=s)["kernel"] for s in (0, 1))

    @jax.jit
    @jax.grad
    def got(x, size):
        return jnp.sum(weights * update([x * size])[0])

    @jax.jit
    @jax.grad
    def expected(x):
        return jnp.sum(weights * x / jnp.std(x))

    for size in (1e-12, 1e-3, 1e12):
        assert_close(got(x, size), expected(x), 1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_derivative_is_finite_where_elements_are_equal(value):
    grads = {"kernel": jnp.full((4, 4), value), "bias": jnp.zeros(4)}
    derivative = jax.grad(lambda g: sum(map(jnp.sum, jax.tree.leaves(update(g)))))
    chex.assert_tree_all_finite(jax.jit(derivative)(grads))


# --- Gradients that XLA knows at compile time ---
#
# It may move a constant factor out of a sum. Sizes are on both sides of those at which
# it chooses another way to sum.

SIZES = [4, 10_000, 16_384, 16_385, 120_000]
CONSTANTS = [0.0, 1e-14, 1e-5, -1.0, 3e4, 1e9]


@pytest.mark.parametrize("stacked", [False, True])
def test_a_constant_gradient(stacked):
    """Its scale is a sixteenth of its magnitude; zeros pass unchanged."""
    stack, options = ((2,), {"stack_axis": 0}) if stacked else ((), {})

    @jax.jit
    def updates():
        return {
            (size, c): update(
                {
                    "kernel": jnp.full((*stack, size, 1), c),
                    "bias": jnp.ones((*stack, 2)),
                },
                0.5,
                **options,
            )
            for size in SIZES
            for c in CONSTANTS
        }

    for (_, constant), got in updates().items():
        gain = 8 / abs(constant) if constant else 1
        np.testing.assert_allclose(got["kernel"], gain * constant, rtol=1e-3)
        np.testing.assert_allclose(got["bias"], gain, rtol=1e-3)


def test_a_gradient_that_xla_can_compute_while_it_compiles():
    @jax.jit
    def updates():
        ramps = [jnp.arange(n, dtype=jnp.float32)[:, None] - n / 3 for n in SIZES]
        return [update({"a": [1e-13 * x], "b": [1e9 * x]}) for x in ramps]

    for size, got in zip(SIZES, updates(), strict=True):
        ramp = np.arange(size)[:, None] - size / 3
        expected = [ramp / np.std(ramp)]
        assert_close(got, {"a": expected, "b": expected}, 1e-3)


@pytest.mark.parametrize("size", [4, 16_385])
def test_layers_that_the_loss_leaves_out_or_holds_pass_as_zeros(size):
    """The recipe of the README, with an unused head, and frozen layers beside it."""
    ones = jnp.ones((size, 1))
    params = {n: {"kernel": ones, "bias": jnp.ones(1)} for n in ("used", "head")}
    params |= {n: {"kernel": ones} for n in ("held", "frozen")}
    is_frozen = {
        n: jax.tree.map(lambda _, n=n: n == "frozen", params[n]) for n in params
    }
    tx = optax.chain(
        optax.masked(optax.set_to_zero(), is_frozen), sg.stablegrad(), optax.sgd(0.1)
    )

    def predict(params, x):
        held = jax.lax.stop_gradient(params["held"]["kernel"])
        kernel = params["used"]["kernel"] + held + params["frozen"]["kernel"]
        return (x @ kernel) / size + params["used"]["bias"]

    def loss(predictions, x):
        return jnp.mean(predictions**2)

    @jax.jit
    def step(params, x):
        f = sg.value_and_grad_with_reference(predict, loss)
        _, grads, reference = f(params, x)
        updates, _ = tx.update(grads, tx.init(params), params, reference=reference)
        return optax.apply_updates(params, updates), reference

    x = jnp.linspace(0.0, 1.0, 2 * size).reshape(2, size)
    new_params, reference = step(params, x)
    moved = wide(params["used"]["kernel"]) - wide(new_params["used"]["kernel"])
    assert_close(scale(moved), 0.1 * wide(reference), 1e-2)
    for name in ("head", "held", "frozen"):
        chex.assert_trees_all_equal(new_params[name], params[name])


# --- In a training step ---


def test_scheduled_options_and_a_schedule_that_falls_below_zero():
    tx = optax.inject_hyperparams(sg.stablegrad, static_args=("group_by", "statistic"))(
        reference=optax.linear_schedule(2.0, -1.0, 3), max_gain=1e30, group_by="layer"
    )
    grads = network(dtype="bfloat16")
    state = tx.init(grads)
    step = jax.jit(tx.update)
    for reference in (2.0, 1.0, 0.0, 0.0):
        updates, state = step(grads, state)
        chex.assert_trees_all_equal_dtypes(updates, grads)
        expected = {name: rescaled(g, reference) for name, g in grads.items()}
        assert_close(updates, expected, 1e-2)


def test_a_scheduled_max_gain_may_fall_to_zero_and_below():
    bounded = jax.jit(lambda bound: update(network(), max_gain=bound))
    for bound in (0.0, -1.0):
        updates = bounded(bound)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, network()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_program_has_no_condition_and_no_copy_of_the_gradients(dtype):
    layers = [random_layer(256, 256, dtype=dtype, seed=i) for i in range(3)]

    def compiled(first):
        tx = optax.chain(first, optax.adam(1e-3))
        state = jax.eval_shape(tx.init, layers)
        return jax.jit(tx.update).lower(layers, state, layers).compile()

    ours, bound = compiled(sg.stablegrad()), compiled(optax.clip_by_block_rms(1.0))
    assert "conditional" not in ours.as_text()
    temporary = [p.memory_analysis().temp_size_in_bytes for p in (ours, bound)]
    # XLA of older JAX widens bfloat16 in memory before each sum, and ours are two.
    if dtype == "float32" or jax.__version_info__ >= (0, 10):
        assert temporary[0] <= temporary[1]


# --- Errors ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_by": "module"}, "group_by must be one of 'layer', 'leaf', 'tree'"),
        ({"statistic": "max"}, "statistic must be one of 'std', 'rms'"),
        ({"reference": -1.0}, "reference must not be negative, got -1.0"),
        ({"reference": np.nan}, "reference must not be negative, got nan"),
        ({"reference": [1.0, 2.0]}, r"reference must be a scalar, got shape \(2,\)"),
        ({"max_gain": 0.0}, "max_gain must be positive, got 0.0"),
        ({"max_gain": np.nan}, "max_gain must be positive, got nan"),
        ({"max_gain": np.ones(3)}, r"max_gain must be a scalar, got shape \(3,\)"),
    ],
)
def test_bad_options_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        sg.stablegrad(**options)


@pytest.mark.parametrize(
    ("default", "reference", "message"),
    [
        (None, None, r"stablegrad\(None\).*reference="),
        (1.0, -0.5, "reference must not be negative"),
        (1.0, jnp.ones(2), "reference must be a scalar"),
    ],
)
def test_bad_references_at_update(default, reference, message):
    tx = sg.stablegrad(default)
    with pytest.raises(ValueError, match=message):
        tx.update(network(), tx.init(None), reference=reference)
