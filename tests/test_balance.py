"""Balanced terms: the rule against a plain loop in float64, and what it promises."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from definitions import assert_close, balanced, elements, random_layer, scale
from hypothesis import given
from hypothesis import strategies as st

import stablegrad_optax as sg

NAMES = "a", "b", "c"


def random_grads(scales=(1.0, 1e-3, 1e4), dtype="float32", seed=0):
    return {
        name: [random_layer(3, 4, s, dtype, seed + i)]
        for i, (name, s) in enumerate(zip(NAMES, scales, strict=True))
    }


VALUES = {"a": 2.0, "b": 1e-5, "c": 3e3}


@functools.partial(jax.jit, static_argnames="power")
def first_update(grads, values=VALUES, weights=None, power=0.5):
    with jax.numpy_dtype_promotion("strict"):
        tx = sg.balance_terms(tuple(grads), weights, power=power)
        return tx.update(grads, tx.init(None), values=values)


# --- The rule ---

STEPS = 40
BAD = {25: np.nan, 33: np.inf}


def recorded_steps():
    """Scales that fall, jump and vanish; gradients that are not finite."""
    rng = np.random.default_rng(0)
    grads, values = [], []
    for step in range(STEPS):
        scales = np.exp(rng.normal(0, 0.5, 3)) * [1.0, 1e-3 * 0.7**step, 1e4]
        scales[0] *= 1e3 if step in (7, 19) else 1
        scales[1] *= step not in (0, 1, 11)
        scales[2] *= step != 30
        g = random_grads(scales, seed=3 * step)
        if step in BAD:
            g["b"][0]["bias"] = g["b"][0]["bias"].at[0].set(BAD[step])
        grads.append(g)
        values.append(dict(zip(NAMES, np.exp(rng.normal(0, 2, 3)), strict=True)))
        values[-1]["a"] *= step != 15
    return grads, values


@pytest.mark.parametrize(
    ("decay", "power", "strength"),
    [(0.99, 0.5, 1.0), (0.9, 0.0, 1.0), (0.0, 1.0, 1.0), (0.5, 2.0, 0.3), (0.9, 1, 0)],
)
def test_forty_steps_are_those_of_a_plain_loop(decay, power, strength):
    grads, values = recorded_steps()
    importance = {"a": 1.0, "b": 0.5, "c": 2.0}
    options = {"decay": decay, "power": power, "strength": strength}
    tx = sg.balance_terms(NAMES, {"b": 0.5, "c": 2.0}, **options)

    @jax.jit
    def run(steps):
        def step(state, step):
            total, state = tx.update(step[0], state, values=step[1])
            return state, (total, state)

        return jax.lax.scan(step, tx.init(None), steps)[1]

    stacked = jax.tree.map(
        lambda *x: jnp.stack([*map(jnp.float32, x)]), *zip(grads, values, strict=True)
    )
    totals, states = run(stacked)
    loop = balanced(grads, values, importance, decay, power, strength)
    for step, (total, weights, mean_squares, counts) in enumerate(loop):
        got, state = jax.tree.map(lambda x, i=step: x[i], (totals, states))
        chex.assert_trees_all_equal(state.counts, counts)
        chex.assert_trees_all_close(state.mean_squares, mean_squares, rtol=1e-3)
        if step in BAD:  # visible, and not remembered
            assert not np.isfinite(elements(got)).all()
            continue
        chex.assert_trees_all_close(state.weights, weights, rtol=1e-3)
        assert_close(got, total, 1e-3)


@given(st.floats(1e-6, 1e6), st.sampled_from(NAMES))
def test_a_factor_in_front_of_a_term_changes_nothing(factor, name):
    factors = dict.fromkeys(NAMES, 1.0) | {name: factor}
    expected, got = two_steps(dict.fromkeys(NAMES, 1.0)), two_steps(factors)
    assert_close(got, expected, 1e-4)


@jax.jit
def two_steps(factors):
    tx = sg.balance_terms(NAMES)
    state = tx.init(None)
    for seed in range(2):
        grads = random_grads(seed=seed)
        grads = {
            k: jax.tree.map(lambda g, k=k: factors[k] * g, grads[k]) for k in NAMES
        }
        values = {k: factors[k] * VALUES[k] for k in NAMES}
        total, state = tx.update(grads, state, values=values)
    return total


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_opposite_gradients_rest_only_where_terms_are_equally_far(power):
    """L = (x - a)² c: L / s is |x - a| / 2 whatever c, so they rest in the middle."""

    def losses(x):
        return {"left": 1e4 * jnp.sum(x**2), "right": 1e-4 * jnp.sum((x - 1) ** 2)}

    def direction(x, power):
        values, grads = sg.value_and_grad_of_terms(losses)(x)
        return first_update(grads, values, power=power)[0]

    assert direction(jnp.float32(0.1), power) < -0.2
    assert direction(jnp.float32(0.9), power) > 0.2
    assert abs(direction(jnp.float32(0.5), power)) < 1e-5
    # Unit vectors cancel wherever they are opposite.
    assert abs(direction(jnp.float32(0.1), 0.0)) < 1e-5


def test_terms_of_zeros_add_nothing_known_while_compiling_or_not():
    grads = random_grads()
    two = {k: grads[k] for k in "ab"}
    zeros = jax.tree.map(np.zeros_like, grads["c"])
    for power in (0.0, 0.5):
        expected, _ = first_update(two, {k: VALUES[k] for k in "ab"}, power=power)
        tx = sg.balance_terms(NAMES, power=power)

        @jax.jit
        def update(two, zeros=zeros, tx=tx):
            return tx.update(two | {"c": zeros}, tx.init(None), values=VALUES)

        for total, state in (update(two), update(two, zeros)):
            assert_close(total, expected)
            assert state.weights["c"] == state.counts["c"] == 0
    nothing = jax.tree.map(jnp.zeros_like, grads)
    total, state = first_update(nothing)
    chex.assert_trees_all_equal(total, nothing["a"])
    chex.assert_tree_all_finite(state)


def test_values_that_are_all_zero_are_equally_far():
    grads = random_grads()
    got = first_update(grads, dict.fromkeys(NAMES, 0.0))[0]
    assert_close(got, first_update(grads, power=0.0)[0])


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_negative_value_is_visible(power):
    grads, values = random_grads(), VALUES | {"b": -1.0}
    total, _ = first_update(grads, values, power=power)
    assert not np.isfinite(elements(total)).any()
    assert np.isfinite(elements(first_update(grads, values, power=0.0)[0])).all()


def test_a_power_that_is_zero_while_running():
    @jax.jit
    def update(power):
        tx = sg.balance_terms(NAMES, power=power)
        return tx.update(random_grads(), tx.init(None), values=VALUES | {"b": 0.0})

    assert_close(update(0.0)[0], first_update(random_grads(), power=0.0)[0])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("values", [(3.0, 2.0), (3.0, 1.0), (0.3, 5.0)])
def test_opposite_gradients_cancel_only_where_both_are_equally_far(power, values):
    """docs/loss_terms.md: g_1 = -κ g_2 leaves (D_2^p - D_1^p) g_2 / s_2, D = L / s."""
    g = random_layer(3, 4, 1.0, "float32", 0)
    grads = {"a": jax.tree.map(lambda x: -3 * x, g), "b": g}
    total, _ = first_update(grads, dict(zip("ab", values, strict=True)), power=power)
    s = scale(elements(g), "rms")
    distances = np.array(values) / (3 * s, s)
    a, b = (distances / distances.max()) ** power
    chex.assert_trees_all_close(
        total, jax.tree.map(lambda x: (b - a) * x / s, g), atol=1e-5
    )


# --- Dtypes and kinds of leaves ---


@pytest.mark.parametrize(
    ("dtype", "scales", "rtol"),
    [
        ("float32", (1e-17, 1.0, 1e15), 1e-3),
        ("complex64", (1e-17, 1.0, 1e15), 1e-3),
        ("bfloat16", (1e-17, 1.0, 1e15), 1e-2),
        ("float16", (1e-4, 1.0, 1e3), 2e-3),
    ],
)
def test_dtypes_and_range(dtype, scales, rtol):
    grads = random_grads(scales, dtype)
    total, state = first_update(grads, power=0.0)
    chex.assert_trees_all_equal_dtypes(total, grads["a"])
    loop = balanced([grads], [VALUES], dict.fromkeys(NAMES, 1.0), 0.99, 0.0)
    ((expected, weights, *_),) = loop
    assert_close(total, expected, rtol)
    chex.assert_trees_all_close(state.weights, weights, rtol=1e-3)


def test_what_is_beyond_the_dtype_saturates():
    grads = {"a": jnp.array([1.0, -1.0], jnp.float16), "b": jnp.ones(2, jnp.float16)}
    total, _ = first_update(grads, weights={"a": 1e30, "b": 1e30}, power=0.0)
    np.testing.assert_array_equal(total, jnp.array([65504.0, 0.0], jnp.float16))


def test_leaves_without_a_gradient_are_those_of_the_first_term():
    def term(number):
        return {
            "w": jnp.full(1, float(number)),
            "none": None,
            "masked": optax.MaskedNode(),
            "empty": jnp.zeros((0, 3)),
            "counts": np.array([number, 2], int),
            "float0": np.zeros(3, jax.dtypes.float0),
        }

    tx = sg.balance_terms(("b", "a"), power=0.0)  # b is first
    total, _ = tx.update({"a": term(3), "b": term(4)}, tx.init(None))
    np.testing.assert_allclose(total.pop("w"), [2.0], rtol=1e-6)
    chex.assert_trees_all_equal_structs(
        total, {k: v for k, v in term(4).items() if k != "w"}
    )
    np.testing.assert_array_equal(total["counts"], [4, 2])
    assert total["float0"].dtype == jax.dtypes.float0


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
def test_derivatives_are_finite_with_zeros_too(strength):
    grads = random_grads()
    grads["c"] = jax.tree.map(jnp.zeros_like, grads["c"])

    @jax.jit
    @jax.grad
    def derivative(grads):
        tx = sg.balance_terms(NAMES, strength=strength)
        total, _ = tx.update(grads, tx.init(None), values=VALUES)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(total))

    chex.assert_tree_all_finite(derivative(grads))


# --- Importances and options ---


def test_weights_come_after_balancing():
    grads = random_grads()
    _, plain = first_update(grads, power=0.0)
    weights = {"c": jnp.float32(0.0), "a": np.array(2.0)}
    _, state = first_update(grads, weights=weights, power=0.0)
    expected = {
        k: w * plain.weights[k] for k, w in {"a": 2.0, "b": 1.0, "c": 0.0}.items()
    }
    chex.assert_trees_all_close(state.weights, expected, rtol=1e-6)


def test_a_weight_may_be_a_schedule():
    schedule = optax.linear_schedule(0.0, 3.0, 3)
    tx = sg.balance_terms(NAMES, {"b": schedule}, power=0.0)
    state, update = tx.init(None), jax.jit(tx.update)
    for step in range(3):
        _, state = update(random_grads(), state)
        # The gradients, and so their scales, are the same in every step.
        got = state.weights["b"] * scale(random_grads()["b"], "rms")
        np.testing.assert_allclose(got, step, rtol=1e-4)


def test_strength_may_be_a_schedule_and_ends_at_equal_scales():
    """Equal scales are g / s at every step, whatever came before."""
    grads, values = recorded_steps()
    tx = sg.balance_terms(NAMES, strength=optax.linear_schedule(1.0, 0.0, 8))
    full = sg.balance_terms(NAMES)
    state = full_state = tx.init(None)
    update, full_update = jax.jit(tx.update), jax.jit(full.update)
    for step in range(9):
        total, state = update(grads[step], state, values=values[step])
        full_total, full_state = full_update(
            grads[step], full_state, values=values[step]
        )
        if step == 0:
            assert_close(total, full_total, 1e-6)
    chex.assert_trees_all_equal(state.mean_squares, full_state.mean_squares)
    scales = {name: 1 / scale(g, "rms") for name, g in grads[8].items()}
    chex.assert_trees_all_close(state.weights, scales, rtol=1e-4)


# --- Errors ---


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["ab"], {}, "terms must be .*'ab'"),
        ([()], {}, "terms must be "),
        ([("a", "a")], {}, "terms must be "),
        ([NAMES, {"x": 1.0}], {}, "'x'.*'a', 'b', 'c'"),
        ([NAMES, {"b": -2.0}], {}, "weight of 'b' must not be negative, got -2.0"),
        ([NAMES, {"b": jnp.ones(2)}], {}, "weight of 'b' must be a scalar"),
        ([NAMES], {"decay": 1.0}, "decay must be from 0 to less than 1, got 1.0"),
        ([NAMES], {"decay": -0.1}, "decay must be from 0 to less than 1"),
        ([NAMES], {"power": -1.0}, "power must not be negative, got -1.0"),
        ([NAMES], {"power": jnp.ones(2)}, "power must be a scalar"),
        ([NAMES], {"strength": 1.5}, "strength must be from 0 to 1, got 1.5"),
    ],
)
def test_bad_options_at_construction(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        sg.balance_terms(*arguments, **options)


TERM = {"w": jnp.ones(2)}
TERMS = dict.fromkeys(NAMES, TERM)
FP8 = {"params": TERM, "_overwrite_with_gradient": {"scale": jnp.ones(1)}}


@pytest.mark.parametrize(
    ("grads", "values", "message"),
    [
        (TERMS, None, "values=.*power=0"),
        (TERMS | {"x": TERM}, VALUES, "grads.*'a', 'b', 'c'.*'x'"),
        ({"a": TERM, "b": TERM}, VALUES, r"grads.*'a', 'b', 'c'.*\('a', 'b'\)"),
        (TERM, VALUES, "grads.*'a', 'b', 'c'.*'w'"),
        ([TERM] * 3, VALUES, "grads must be a dict.*list"),
        (TERMS, {"a": 1.0}, r"values.*'a', 'b', 'c'.*\('a',\)"),
        (TERMS, 1.0, "values must be a dict.*float"),
        (TERMS, VALUES | {"a": (1.0,)}, r"'a' must be a scalar, got shape \(1,\)"),
        (TERMS | {"b": {}}, VALUES, "no floating-point elements"),
        (dict.fromkeys(NAMES, FP8), VALUES, "leaf '_overwrite_with_gradient/scale'"),
    ],
)
def test_bad_arguments_at_update(grads, values, message):
    tx = sg.balance_terms(NAMES)
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(None), values=values)
