"""Loss terms: their gradients in one sweep, and balanced as defined, in float64."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import stablegrad_optax as sg


def random_grads(exponents=(0, -3, 4), dtype="float32", shapes=((5, 7), (7,), ())):
    """Gradients of terms of several scales, a dict of stacked leaves."""
    rng = np.random.default_rng(0)

    def real(shape):
        x = np.stack([rng.normal(0.3, 1, shape) * 10.0**e for e in exponents])
        # XLA takes subnormal numbers for zero on most devices.
        return np.where(np.abs(x) < jnp.finfo(dtype).tiny, 0, x)

    def draw(shape):
        is_complex = np.issubdtype(dtype, np.complexfloating)
        x = real(shape) + 1j * real(shape) if is_complex else real(shape)
        return jnp.asarray(x, dtype)

    return {str(i): draw(shape) for i, shape in enumerate(shapes)}


def wide(x):
    return np.asarray(x).astype(complex if np.iscomplexobj(x) else float)


def term(grads, k):
    """All elements of a term in double precision."""
    return np.concatenate([wide(x)[k].ravel() for x in jax.tree.leaves(grads)])


def number(grads):
    return len(jax.tree.leaves(grads)[0])


def expected_scales(grads):
    terms = [term(grads, k) for k in range(number(grads))]
    return np.array([np.sqrt(np.mean(np.abs(x) ** 2)) for x in terms])


def expected_sum(grads, weights=None, max_ratio=np.inf):
    sigma = expected_scales(grads)
    with np.errstate(divide="ignore"):
        gains = np.where(sigma > 0, np.minimum(1 / sigma, max_ratio / sigma.max()), 0)
    gains *= 1 if weights is None else np.asarray(weights)
    return jax.tree.map(lambda g: np.tensordot(gains, wide(g), 1), grads)


def assert_close(got, expected, rtol=1e-5):
    """Relative to the largest element of the tree: terms may cancel in others."""
    largest = max(np.abs(y).max() for y in jax.tree.leaves(expected))

    def check(x, y):
        np.testing.assert_allclose(wide(x), y, atol=rtol * largest, rtol=0)

    chex.assert_trees_all_equal_structs(got, expected)
    jax.tree.map(check, got, expected)


# --- The gradients of the terms ---


def network_losses(params, x):
    """Two terms on points of their own, and one on parameters alone."""

    def u(x):
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return x @ params[-1]["kernel"]

    return {
        "inside": jnp.mean(jax.vmap(jax.grad(lambda x: u(x)[0]))(x) ** 2),
        "boundary": 1e3 * jnp.mean((u(2 * x) - 1) ** 2),
        "decay": 1e-6 * sum(jnp.vdot(p, p) for p in jax.tree.leaves(params)),
    }


def network_params(depth=2, width=8):
    rng = np.random.default_rng(1)

    def layer(n, m):
        kernel = rng.normal(0, n**-0.5, (n, m))
        return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(m)}

    return [
        layer(2, width),
        *(layer(width, width) for _ in range(depth)),
        layer(width, 1),
    ]


POINTS = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (16, 2)), jnp.float32)


def test_values_and_gradients_are_those_of_jacrev():
    params = network_params()
    values, grads = jax.jit(sg.value_and_grad_of_terms(network_losses))(params, POINTS)
    expected = jax.jit(network_losses)(params, POINTS)
    chex.assert_trees_all_close(values, expected, rtol=1e-6)
    of_terms = jax.jit(jax.jacrev(network_losses))(params, POINTS)
    assert list(of_terms) == sorted(values)
    for k, of_term in enumerate(of_terms.values()):
        assert_close(jax.tree.map(lambda g, k=k: g[k], grads), of_term, 1e-6)


def test_aux_and_any_structure_of_terms():
    def losses(x):
        return (jnp.sum(x), [jnp.sum(x**2)]), {"batch_stats": 2 * x}

    x = jnp.array([1.0, 2.0])
    (values, aux), grads = sg.value_and_grad_of_terms(losses, has_aux=True)(x)
    assert jax.tree.map(float, values) == (3.0, [5.0])
    np.testing.assert_array_equal(aux["batch_stats"], 2 * x)
    np.testing.assert_array_equal(grads, [[1, 1], [2, 4]])


def test_complex_parameters_have_the_gradient_of_jax_grad():
    def loss(z):
        return jnp.sum(jnp.abs(z) ** 2 * jnp.real(z))

    z = jnp.array([1 + 2j, -1j])
    _, grads = sg.value_and_grad_of_terms(lambda z: [loss(z)])(z)
    np.testing.assert_allclose(grads[0], jax.grad(loss)(z), rtol=1e-6)


def test_functions_with_rules_of_their_own_and_checkpoints():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))

    @jax.checkpoint
    def hidden(x):
        return cube(jax.nn.relu(x))

    def losses(x):
        y, _ = jax.lax.scan(lambda x, _: (jnp.sin(hidden(x)), None), x, length=3)
        return {"a": jnp.sum(y), "b": jnp.sum(jnp.log1p(y))}

    x = jnp.array([0.5, 1.0, -2.0])
    _, grads = jax.jit(sg.value_and_grad_of_terms(losses))(x)
    expected = jax.jacrev(losses)(x)
    np.testing.assert_allclose(grads, list(expected.values()), rtol=1e-6)


def counted(f, *args):
    """Matrix products in the compiled program."""
    text = jax.jit(f).lower(*args).compiler_ir("hlo").as_hlo_text()
    return len(re.findall(r" dot\(", text))


def test_terms_on_points_of_their_own_cost_what_their_sum_costs():
    params = network_params(depth=4)
    total = jax.value_and_grad(lambda *args: sum(network_losses(*args).values()))
    terms = sg.value_and_grad_of_terms(network_losses)
    assert counted(terms, params, POINTS) == counted(total, params, POINTS)


def test_terms_on_the_same_points_share_their_forward_pass():
    params = network_params(depth=4)

    def losses(params, x):
        for layer in params:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return {"a": jnp.mean(x), "b": jnp.mean(x**2)}

    forward = counted(losses, params, POINTS)
    one = counted(jax.grad(lambda *args: losses(*args)["a"]), params, POINTS)
    both = counted(sg.value_and_grad_of_terms(losses), params, POINTS)
    assert both == forward + 2 * (one - forward)


@pytest.mark.parametrize(
    ("losses", "params", "error", "message"),
    [
        (
            lambda x: {"a": {"b": x}},
            jnp.ones(2),
            ValueError,
            r"float32\[2\] for term 'a",
        ),
        (lambda x: {"n": jnp.int32(1)}, 1.0, ValueError, r"int32\[\] for term 'n'"),
        (lambda x: {"z": x * 1j}, 1.0, ValueError, r"complex64\[\] for term 'z'"),
        (lambda x: {}, 1.0, ValueError, "one term or more"),
        (lambda p: p["w"], {"w": 1.0, "n": 3}, TypeError, "got int32 in leaf 'n'"),
        (lambda p: 1.0, jax.random.key(0), TypeError, r"got key<fry> in leaf '\.'"),
    ],
)
def test_bad_losses(losses, params, error, message):
    with pytest.raises(error, match=message):
        sg.value_and_grad_of_terms(losses)(params)


# --- Balanced ---


@pytest.mark.parametrize(
    ("exponents", "dtype", "rtol"),
    [
        ((0, -3, 4), "float32", 1e-6),
        ((-34, 0, 36), "float32", 1e-6),
        ((-34, -30), "float32", 1e-6),
        ((33, 36), "float32", 1e-6),
        ((0, -3, 4), "complex64", 1e-6),
        ((-33, 0, 35), "complex64", 1e-6),
        ((0, -3, 4), "bfloat16", 5e-3),
        ((-33, 0, 35), "bfloat16", 5e-3),
        ((0, -2, 3), "float16", 1e-3),
    ],
)
@pytest.mark.parametrize("shapes", [((5, 7), (7,), ()), ((300, 200), (200,))])
def test_balanced_is_the_definition(exponents, dtype, rtol, shapes):
    grads = random_grads(exponents, dtype, shapes)
    got = jax.jit(sg.balance_terms)(grads)
    chex.assert_trees_all_equal_dtypes(got, jax.tree.map(lambda g: g[0], grads))
    assert_close(got, expected_sum(grads), rtol)
    np.testing.assert_allclose(sg.term_scales(grads), expected_scales(grads), rtol=5e-6)


@given(st.floats(1e-6, 1e6), st.integers(0, 2))
def test_a_factor_on_a_term_changes_nothing(factor, which):
    grads = random_grads()
    factors = np.where(np.arange(3) == which, factor, 1).astype(np.float32)
    changed = jax.tree.map(
        lambda g: jnp.asarray(np.moveaxis(np.moveaxis(g, 0, -1) * factors, -1, 0)),
        grads,
    )
    expected = jax.tree.map(np.float64, sg.balance_terms(grads))
    assert_close(sg.balance_terms(changed), expected, 1e-6)


def test_one_term_is_its_gradient_over_its_rms():
    grads = random_grads((5,))
    assert_close(
        sg.balance_terms(grads),
        jax.tree.map(lambda g: wide(g)[0] / expected_scales(grads), grads),
        1e-6,
    )


def test_weights_come_after_balancing_in_the_structure_of_the_values():
    grads = random_grads()
    weights = {"boundary": 2.0, "data": jnp.float32(0.0), "residual": 0.5}
    got = jax.jit(sg.balance_terms)(grads, weights)
    assert_close(got, expected_sum(grads, list(weights.values())), 1e-6)


@pytest.mark.parametrize("max_ratio", [1.0, 30.0, 1e8])
@pytest.mark.parametrize("exponents", [(0, -3, 4), (-34, -30, -32), (36, 34, 30)])
def test_max_ratio_bounds_the_gains(max_ratio, exponents):
    grads = random_grads(exponents)
    weights = [1.0, 3.0, 0.2]
    got = sg.balance_terms(grads, weights, max_ratio=max_ratio)
    expected = expected_sum(grads, weights, max_ratio)
    assert_close(got, expected, 1e-6)


def test_terms_of_zeros_add_nothing_and_are_no_bound():
    grads = random_grads((0, -3))
    with_zeros = jax.tree.map(lambda g: jnp.concatenate([g, 0 * g[:1]]), grads)
    for options in ({}, {"max_ratio": 10.0}):
        expected = sg.balance_terms(grads, **options)
        chex.assert_trees_all_equal(sg.balance_terms(with_zeros, **options), expected)
    nothing = jax.tree.map(jnp.zeros_like, grads)
    for leaf in jax.tree.leaves(sg.balance_terms(nothing, max_ratio=10.0)):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "options", [{}, {"max_ratio": 10.0}, {"weights": [1.0, 0.0, 1.0]}]
)
def test_what_is_not_finite_stays_visible(bad, options):
    grads = random_grads()
    grads["0"] = grads["0"].at[1, 2, 3].set(bad)
    for leaf in jax.tree.leaves(sg.balance_terms(grads, **options)):
        assert np.isnan(leaf).all()
    assert np.isnan(sg.term_scales(grads)[1])
    assert np.isfinite(sg.term_scales(grads)[::2]).all()


def test_large_weights_saturate():
    grads = {"w": jnp.array([[1.0, -1.0], [1.0, 1.0]], jnp.float16)}
    got = sg.balance_terms(grads, [3e38, 3e38])["w"]
    np.testing.assert_array_equal(got, jnp.array([65504.0, 0.0], jnp.float16))


def test_leaves_of_other_kinds():
    grads = {
        "w": jnp.array([[3.0], [4.0]]),
        "none": None,
        "masked": optax.MaskedNode(),
        "empty": jnp.zeros((2, 0, 3)),
        "counts": np.array([[1, 2], [3, 4]]),
        "float0": np.zeros((2, 3), jax.dtypes.float0),
    }
    got = sg.balance_terms(grads)
    np.testing.assert_allclose(got["w"], [2.0])
    assert got["none"] is None
    assert got["masked"] == optax.MaskedNode()
    assert got["empty"].shape == (0, 3)
    np.testing.assert_array_equal(got["counts"], [1, 2])
    assert got["float0"].shape == (3,)
    assert got["float0"].dtype == jax.dtypes.float0
    without = {name: grads[name] for name in ("none", "masked", "empty", "counts")}
    assert sg.balance_terms(without)["empty"].shape == (0, 3)


TWO = jnp.ones((2, 3))


@pytest.mark.parametrize(
    ("grads", "options", "message"),
    [
        (
            {"a": {"w": jnp.float32(1)}},
            {},
            r"axis of terms, got shape \(\) for leaf 'a/w'",
        ),
        (
            {"a": TWO, "b": jnp.ones(3)},
            {},
            "leaf 'b' of grads has 3 terms .* 'a' has 2",
        ),
        ({"a": jnp.ones((0, 2))}, {}, r"got shape \(0, 2\) for leaf 'a'"),
        ({}, {}, "no leaves"),
        (TWO, {"weights": {"x": 1.0}}, "weights must be 2 scalars, .* got 1"),
        (TWO, {"weights": [1.0, -2.0]}, "weights at '1' must not be negative, got -2"),
        (TWO, {"weights": [1.0, jnp.ones(2)]}, "weights at '1' must be a scalar"),
        (TWO, {"max_ratio": 0.5}, "max_ratio must be at least 1, got 0.5"),
        (TWO, {"max_ratio": jnp.ones(2)}, "max_ratio must be a scalar"),
    ],
)
def test_bad_arguments(grads, options, message):
    with pytest.raises(ValueError, match=message):
        sg.balance_terms(grads, **options)


@pytest.mark.parametrize("function", [sg.term_scales, sg.term_alignment])
def test_no_elements_have_no_scale(function):
    with pytest.raises(ValueError, match="no floating-point elements"):
        function({"counts": np.array([1, 2])})


# --- Alignment ---


@pytest.mark.parametrize("dtype", ["float32", "complex64", "bfloat16"])
@pytest.mark.parametrize("exponents", [(0, -3, 4), (-33, 0, 35)])
def test_alignment_is_that_of_the_definition(dtype, exponents):
    grads = random_grads(exponents, dtype)
    # The last term is the first one, turned round.
    grads = jax.tree.map(lambda g: jnp.concatenate([g, -g[:1]]), grads)
    terms = np.stack([term(grads, k) for k in range(4)])
    terms /= np.linalg.norm(terms, axis=1, keepdims=True)
    got = jax.jit(sg.term_alignment)(grads)
    np.testing.assert_allclose(got, np.real(terms @ terms.conj().T), atol=1e-6)
    np.testing.assert_allclose(got[0, 3], -1, atol=1e-6)
    assert np.abs(got).max() <= 1


def test_alignment_with_a_term_of_zeros():
    grads = jnp.array([[1.0, 1.0], [0.0, 0.0], [2.0, -2.0]])
    np.testing.assert_allclose(
        sg.term_alignment(grads), [[1, 0, 0], [0, 0, 0], [0, 0, 1]], atol=1e-7
    )


# --- Under transformations, over devices, with wrappers and frameworks ---


def test_under_vmap_and_scan():
    grads = random_grads()
    members = jax.tree.map(lambda g: jnp.stack([g, 3 * g[::-1]]), grads)
    got = jax.vmap(sg.balance_terms)(members)
    _, scanned = jax.lax.scan(lambda _, g: (None, sg.balance_terms(g)), None, members)
    for results in (got, scanned):
        for i in range(2):
            member = jax.tree.map(lambda g, i=i: g[i], members)
            assert_close(
                jax.tree.map(lambda g, i=i: g[i], results), expected_sum(member), 1e-6
            )


def test_differentiable():
    def f(factor):
        grads = random_grads()
        grads = jax.tree.map(lambda g: g.at[1].multiply(factor), grads)
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(sg.balance_terms(grads)))

    assert abs(jax.grad(f)(2.0)) < 1e-3  # a factor has no effect
    np.testing.assert_allclose(f(2.0), f(1.0), rtol=1e-5)


@pytest.mark.parametrize(
    "mapped",
    [
        pytest.param(
            False,
            marks=pytest.mark.compatible("parallelism", "jit, FSDP-sharded"),
            id="jit",
        ),
        pytest.param(
            True,
            marks=pytest.mark.compatible("parallelism", "`shard_map` with `axis_name`"),
            id="shard_map",
        ),
    ],
)
def test_sharded_no_gradient_is_gathered(mapped):
    mesh = Mesh(np.array(jax.devices()), ("model",))
    spec = PartitionSpec(None, "model")
    grads = random_grads(shapes=((64, 8), (16,), (320, 200)))
    sharded = jax.device_put(grads, NamedSharding(mesh, spec))
    name = "model" if mapped else None
    functions = [
        (functools.partial(sg.balance_terms, max_ratio=1e9, axis_name=name), True),
        (functools.partial(sg.term_scales, axis_name=name), False),
        (functools.partial(sg.term_alignment, axis_name=name), False),
    ]
    for f, is_sharded in functions:
        expected = f.func(grads, **{k: v for k, v in f.keywords.items() if v == 1e9})
        if mapped:
            out = PartitionSpec("model") if is_sharded else PartitionSpec()
            f = jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=out)
        compiled = jax.jit(f).lower(sharded).compile()
        assert "all-gather" not in compiled.as_text()
        chex.assert_trees_all_close(compiled(sharded), expected, rtol=1e-5, atol=1e-6)


WRAPPERS = {
    "optax.MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "optax.apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "optax.masked": lambda tx: optax.masked(tx, [True, False, True, True]),
    "optax.partition": lambda tx: optax.partition(
        {"a": tx, "b": optax.set_to_zero()}, ["a", "a", "a", "b"]
    ),
    "sg.stablegrad": lambda tx: optax.chain(sg.stablegrad(), tx),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.compatible("wrapper", name))
        if name.startswith("optax")
        else name
        for name in WRAPPERS
    ],
)
def test_wrappers_get_balanced_gradients(name):
    """A jitted loop lowers every term; the optimizer sees gradients like params."""
    tx = WRAPPERS[name](optax.adam(1e-2))
    params = network_params()

    @jax.jit
    def step(carry, _):
        params, state = carry
        values, grads = sg.value_and_grad_of_terms(network_losses)(params, POINTS)
        updates, state = tx.update(sg.balance_terms(grads), state, params)
        return (optax.apply_updates(params, updates), state), values

    (_, _), values = jax.lax.scan(step, (params, tx.init(params)), length=40)
    for name in ("inside", "boundary"):
        assert values[name][-1] < 0.7 * values[name][0]


@pytest.mark.compatible("framework", "Flax NNX `nnx.Optimizer`")
def test_nnx_optimizer():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        graph, params = nnx.split(model, nnx.Param)

        def losses(params):
            u = nnx.merge(graph, params)
            return {
                "a": jnp.mean(u(POINTS) ** 2),
                "b": 1e5 * jnp.mean((u(POINTS) - 1) ** 2),
            }

        values, grads = sg.value_and_grad_of_terms(losses)(params)
        optimizer.update(model, sg.balance_terms(grads))
        return values

    first, *_, last = [step(model, optimizer) for _ in range(10)]
    assert last["b"] < first["b"]


@pytest.mark.compatible("framework", "Flax Linen `TrainState`")
def test_linen_train_state():
    params = network_params()
    state = TrainState.create(
        apply_fn=network_losses, params=params, tx=optax.adam(1e-2)
    )
    _, grads = sg.value_and_grad_of_terms(state.apply_fn)(params, POINTS)
    state = state.apply_gradients(grads=sg.balance_terms(grads))
    assert state.step == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(state.params, params)
