"""The transformation: std(out) = ρ for each layer, and nothing else changed."""

import functools
import itertools

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import strategies as st

import stablegrad_optax as sg


def mlp(widths=(3, 16, 16, 2), seed=0, dtype=np.float32):
    """Gradients of a dense network, layers of very different scales."""
    rng = np.random.default_rng(seed)
    return {
        f"Dense_{i}": {
            "kernel": jnp.asarray(rng.normal(0.1, 1, (n, m)) * 10.0 ** (-2 * i), dtype),
            "bias": jnp.asarray(rng.normal(0, 1, m) * 10.0 ** (-2 * i), dtype),
        }
        for i, (n, m) in enumerate(itertools.pairwise(widths))
    }


def apply(grads, *, reference=None, **options):
    tx = sg.stablegrad(**options)
    # A library must not promote its users' dtypes behind their backs.
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = tx.update(grads, tx.init(grads), reference=reference)
    return updates


def std(x):
    return np.asarray(x, np.float64).std()


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(1.0, 0.25, 1e-3, 40.0)
    def test_std_of_each_layer_is_the_reference(self, reference):
        grads = mlp()
        tx = sg.stablegrad(reference)
        updates, state = self.variant(tx.update)(grads, tx.init(grads))
        for name, layer in updates.items():
            np.testing.assert_allclose(std(layer["kernel"]), reference, rtol=1e-5)
            # One gain for the layer: the bias keeps its proportion to the kernel.
            gain = reference / std(grads[name]["kernel"])
            np.testing.assert_allclose(
                layer["bias"], gain * grads[name]["bias"], rtol=1e-5
            )
        assert state == sg.StableGradState()

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters("std", "rms")
    def test_update_is_the_formula(self, statistic):
        grads = mlp()
        tx = sg.stablegrad(0.5, statistic=statistic)
        updates, _ = self.variant(tx.update)(grads, tx.init(grads))

        def formula(layer):
            kernel = np.asarray(layer["kernel"], np.float64)
            scale = kernel.std() if statistic == "std" else np.sqrt((kernel**2).mean())
            return jax.tree.map(lambda g: 0.5 / scale * np.asarray(g), layer)

        expected = {name: formula(layer) for name, layer in grads.items()}
        chex.assert_trees_all_close(updates, expected, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(
        dtype=(jnp.float16, jnp.bfloat16, jnp.float32),
        group_by=("layer", "leaf", "tree"),
    )
    def test_structure_shapes_and_dtypes_are_kept(self, dtype, group_by):
        grads = mlp(dtype=dtype) | {
            "none": None,
            "masked": optax.MaskedNode(),
            "count": jnp.arange(3),
            "float0": np.zeros(2, jax.dtypes.float0),
            "norm": {"scale": jnp.ones(4, dtype)},
            "nothing": {"kernel": jnp.ones((0, 4), dtype)},
        }
        tx = sg.stablegrad(group_by=group_by)
        if self.variant.type == chex.ChexVariantType.WITH_JIT:
            del grads["float0"]  # no argument of a jitted function
        updates, _ = self.variant(tx.update)(grads, tx.init(grads))
        chex.assert_trees_all_equal_structs(updates, grads)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)
        chex.assert_trees_all_equal(updates["count"], grads["count"])
        if group_by != "tree":
            chex.assert_trees_all_equal(updates["norm"], grads["norm"])


def test_reference_given_to_update_replaces_the_constructor_s():
    grads = mlp()
    tx = sg.stablegrad(7.0)
    updates, _ = tx.update(grads, tx.init(grads), reference=2.0)
    np.testing.assert_allclose(std(updates["Dense_1"]["kernel"]), 2.0, rtol=1e-5)


@given(st.lists(st.floats(-30, 30), min_size=3, max_size=3))
def test_invariant_to_the_scale_of_each_layer(exponents):
    grads = jax.tree.map(lambda g: g / jnp.std(g), mlp())
    scaled = {
        name: jax.tree.map(lambda g, e=e: g * jnp.float32(10.0**e), grads[name])
        for name, e in zip(grads, exponents, strict=True)
    }
    chex.assert_trees_all_close(apply(scaled), apply(grads), rtol=1e-4)


@given(st.permutations(range(3)))
def test_equivariant_to_permuting_layers(order):
    grads = list(mlp((8, 8, 8, 8)).values())
    updates = apply(grads)
    permuted = apply([grads[i] for i in order])
    chex.assert_trees_all_equal(permuted, [updates[i] for i in order])


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("group_by", ["layer", "leaf", "tree"])
@pytest.mark.parametrize("width", [6, 160])  # a small layer and a large one
def test_stacked_equals_unstacked(axis, group_by, width):
    rng = np.random.default_rng(0)
    layers = [
        {
            "kernel": jnp.asarray(rng.normal(0, 10.0**-i, (width, width)), jnp.float32),
            "bias": jnp.asarray(rng.normal(0, 10.0**-i, width), jnp.float32),
        }
        for i in range(5)
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x, axis), *layers)
    expected = jax.tree.map(
        lambda *x: jnp.stack(x, axis), *apply(layers, group_by=group_by)
    )
    got = apply(stacked, group_by=group_by, stack_axis=axis)
    chex.assert_trees_all_close(got, expected, rtol=1e-5)


def test_stack_axis_by_leaf():
    grads = mlp((4, 4, 4)) | {
        "hidden": {"kernel": jnp.ones((5, 4, 4)).at[:, 0].set(3.0)}
    }

    def stack_axis(path, leaf):
        return 0 if path[0].key == "hidden" else None

    updates = apply(grads, stack_axis=stack_axis)
    chex.assert_trees_all_equal(updates["Dense_0"], apply(mlp((4, 4, 4)))["Dense_0"])
    np.testing.assert_allclose(
        updates["hidden"]["kernel"].std((1, 2)), np.ones(5), 1e-5
    )


finite = st.floats(
    -float(np.float32(1e36)), float(np.float32(1e36)), width=32, allow_subnormal=False
)


# Few shapes, since each is compiled.
shapes = st.sampled_from([(1, 2), (3, 5), (2, 3, 4)])


@functools.cache
def jitted_update(statistic):
    return jax.jit(lambda grads, rho: apply(grads, reference=rho, statistic=statistic))


@given(
    kernel=hnp.arrays(np.float32, shapes, elements=finite),
    bias=hnp.arrays(np.float32, 3, elements=finite),
    statistic=st.sampled_from(["std", "rms"]),
    reference=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
)
def test_finite_and_bounded_for_all_finite_input(kernel, bias, statistic, reference):
    updates = jitted_update(statistic)({"kernel": kernel, "bias": bias}, reference)
    chex.assert_tree_all_finite(updates)
    largest = np.abs(np.asarray(updates["kernel"], np.float64)).max()
    if kernel.any():
        assert largest <= 17.01 * reference * np.sqrt(kernel.size)


@pytest.mark.parametrize(
    "dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64]
)
def test_a_bias_beyond_the_dtype_saturates(dtype):
    largest = float(jnp.finfo(dtype).max)
    kernel = jnp.asarray([[1.0, -1.0]], dtype) * jnp.asarray(1e-4, dtype)
    updates = apply({"kernel": kernel, "bias": jnp.asarray([largest, -1.0], dtype)})
    chex.assert_tree_all_finite(updates)
    assert updates["bias"][0].real == largest


@pytest.mark.parametrize("bias", [0.0, 3.0])
@pytest.mark.parametrize("shape", [(4, 4), (200, 200)])
def test_a_zero_gradient_passes_unchanged(bias, shape):
    grads = {"kernel": jnp.zeros(shape), "bias": jnp.full(shape[1], bias)}
    chex.assert_trees_all_equal(apply(grads), grads)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("leaf", ["kernel", "bias"])
@pytest.mark.parametrize("width", [8, 200])
def test_what_is_not_finite_stays_in_its_layer_and_stays_visible(bad, leaf, width):
    grads = mlp((width, width, width, width))
    broken = jax.tree.map(lambda x: x, grads)
    broken["Dense_1"][leaf] = (
        broken["Dense_1"][leaf].at[(0,) * (1 + (leaf == "kernel"))].set(bad)
    )
    updates = apply(broken)
    expected = apply(grads)
    assert not np.isfinite(updates["Dense_1"][leaf]).all()
    for name in ("Dense_0", "Dense_2"):
        chex.assert_trees_all_close(updates[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("width", [4, 200])
def test_the_update_is_continuous_where_elements_are_nearly_equal(width):
    """An optimizer must not see a jump of the gain where the gradient has none."""
    ramp = jnp.linspace(0.0, 1.0, width * width).reshape(width, width)
    # From elements that are equal to an ordinary spread.
    spreads = np.geomspace(1e-3, 10.0, 81)
    gains = np.array([apply([1 + s * ramp])[0][0, 0] for s in spreads])
    assert gains[0] == pytest.approx(16, rel=2e-3)
    assert np.abs(np.diff(np.log(gains))).max() < 0.2


def test_max_gain_bounds_the_gain_of_each_layer():
    grads = mlp()
    updates = apply(grads, max_gain=100.0)
    for name, layer in grads.items():
        gain = min(1 / std(layer["kernel"]), 100.0)
        chex.assert_trees_all_close(
            updates[name], jax.tree.map(lambda g, k=gain: k * g, layer), rtol=1e-4
        )


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e12])
def test_differentiable(scale):
    """The derivative of ρ g/σ, which is orthogonal to changes of scale."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(6, 5)), jnp.float32)

    def of_scaled(x):
        return jnp.sum(weights * apply([x * jnp.float32(scale)])[0])

    def plain(x):
        return jnp.sum(weights * x / jnp.std(x))

    chex.assert_trees_all_close(jax.grad(of_scaled)(x), jax.grad(plain)(x), atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_differentiable_where_degenerate(value):
    grads = {"kernel": jnp.full((4, 4), value), "bias": jnp.zeros(4)}

    def objective(grads):
        return optax.tree_utils.tree_sum(apply(grads))

    chex.assert_tree_all_finite(jax.grad(objective)(grads))


def test_one_trace_for_all_steps():
    tx = optax.chain(sg.stablegrad(), optax.adam(1e-3))
    params = mlp()
    state = tx.init(params)

    @jax.jit
    @chex.assert_max_traces(1)
    def step(params, state, reference):
        updates, state = tx.update(params, state, params, reference=reference)
        return optax.apply_updates(params, updates), state

    for i in range(3):
        params, state = step(params, state, jnp.float32(i))


def test_chain_inside_scan_and_vmap():
    tx = optax.chain(sg.stablegrad(), optax.adam(1e-2))

    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=5)
        return params

    seeds = [mlp((3, 160, 160, 2), seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    chex.assert_trees_all_close(
        jax.jit(jax.vmap(train))(stacked),
        jax.tree.map(lambda *x: jnp.stack(x), *map(train, seeds)),
        rtol=1e-3,
        atol=1e-7,
    )


def test_scheduled_options_are_traced():
    tx = optax.inject_hyperparams(sg.stablegrad, static_args=("group_by", "statistic"))(
        reference=optax.linear_schedule(1.0, 3.0, 2), max_gain=1e30, group_by="layer"
    )
    grads = mlp(dtype=jnp.bfloat16)
    state = tx.init(grads)
    for expected in (1.0, 2.0, 3.0):
        updates, state = jax.jit(tx.update)(grads, state)
        assert updates["Dense_1"]["kernel"].dtype == jnp.bfloat16
        np.testing.assert_allclose(
            std(updates["Dense_1"]["kernel"]), expected, rtol=1e-2
        )


def test_python_and_numpy_scalars():
    grads = {"kernel": np.ones((2, 2), np.float32) * [[1, 3], [1, 3]], "bias": 2.0}
    grads["kernel"] = grads["kernel"].astype(np.float32)
    updates = apply(grads | {"temperature": {"t": 0.5}})
    np.testing.assert_allclose(updates["bias"], 2.0, rtol=1e-6)
    assert updates["temperature"]["t"] == 0.5


def test_unknown_extra_arguments_and_no_params():
    grads = mlp()
    tx = sg.stablegrad()
    updates, _ = tx.update(grads, tx.init(None), None, value=1.0, grad_fn=print)
    chex.assert_trees_all_equal(updates, apply(grads))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"group_by": "module"},
            "group_by must be one of 'layer', 'leaf', 'tree' or a",
        ),
        ({"statistic": "max"}, "statistic must be one of 'std', 'rms'"),
        ({"reference": -1.0}, "reference must not be negative, got -1.0"),
        ({"reference": [1.0, 2.0]}, r"reference must be a scalar, got shape \(2,\)"),
        ({"max_gain": 0.0}, "max_gain must be positive, got 0.0"),
        ({"max_gain": np.ones(3)}, r"max_gain must be a scalar, got shape \(3,\)"),
    ],
)
def test_bad_options_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        sg.stablegrad(**options)


def test_a_reference_of_none_has_to_be_given_to_update():
    grads = mlp()
    tx = optax.chain(sg.stablegrad(None), optax.sgd(1.0))
    state = tx.init(grads)
    with pytest.raises(ValueError, match=r"stablegrad\(None\).*reference="):
        tx.update(grads, state)
    updates, _ = tx.update(grads, state, reference=jnp.float32(2.0))
    np.testing.assert_allclose(std(updates["Dense_1"]["kernel"]), 2.0, rtol=1e-5)


def test_bad_reference_at_update():
    tx = sg.stablegrad()
    with pytest.raises(ValueError, match="reference must not be negative"):
        tx.update(mlp(), tx.init(None), reference=-0.5)
    with pytest.raises(ValueError, match="reference must be a scalar"):
        tx.update(mlp(), tx.init(None), reference=jnp.ones(2))


def test_bad_stack_axis_names_the_leaf():
    with pytest.raises(ValueError, match="out of range for leaf 'Dense_0/bias'"):
        apply(mlp(), stack_axis=1)
