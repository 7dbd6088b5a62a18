"""The reference scale, and the value and gradient that come with it."""

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stablegrad_optax as sg

# --- reference_scale ------------------------------------------------------------------


def std(*leaves):
    wide = [np.ravel(np.asarray(x)) for x in leaves]
    wide = [x.astype(np.result_type(x, np.float64)) for x in wide]
    return np.std(np.concatenate(wide))


@given(
    hnp.arrays(
        np.float32,
        st.sampled_from([(2,), (7,), (3, 5), (2, 3, 4)]),
        elements=st.floats(-1.0, 1.0, width=32),
        unique=True,
    ),
    st.integers(-25, 25),
)
def test_reference_scale_is_the_std_of_numpy(unit, exponent):
    grads = unit * np.float32(10.0**exponent)
    rms = np.sqrt(np.mean(grads.astype(float) ** 2))
    expected = max(std(grads), rms / 16)
    # One pass has the accuracy of the mean square, of which std² may be 1/256.
    np.testing.assert_allclose(sg.reference_scale(grads), expected, rtol=1e-3)


def test_reference_scale_pools_the_tree():
    rng = np.random.default_rng(0)
    fields = {
        "u": jnp.asarray(rng.normal(size=(8, 1)), jnp.float32),
        "v": jnp.asarray(rng.normal(5.0, 2.0, size=(3, 4)), jnp.float32),
        "q": [jnp.float32(3.0)],
    }
    expected = std(*jax.tree.leaves(fields))
    np.testing.assert_allclose(sg.reference_scale(fields), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "bystander",
    [
        jnp.arange(5),
        np.zeros(5, jax.dtypes.float0),
        jnp.zeros(0),
        None,
    ],
    ids=["int", "float0", "no elements", "None"],
)
def test_reference_scale_leaves_out_what_is_no_gradient(bystander):
    scale = sg.reference_scale([bystander, jnp.array([1.0, 3.0])])
    chex.assert_trees_all_close(scale, 1.0)


def test_complex_elements():
    z = np.array([1 + 2j, -3j, 0.5, 2 - 1j], np.complex64)
    scale = sg.reference_scale(z)
    assert scale.dtype == jnp.float32
    np.testing.assert_allclose(scale, std(z), rtol=1e-6)


def test_bfloat16_elements_accumulate_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(3.0, 1.0, 10_000), jnp.bfloat16)
    scale = sg.reference_scale(x)
    assert scale.dtype == jnp.float32
    np.testing.assert_allclose(scale, std(x), rtol=1e-4)


@pytest.mark.parametrize("value", [3.0, -3.0])
@pytest.mark.parametrize(
    ("shape", "expected"), [((), 3.0), ((1,), 3.0), ((5, 2), 3.0 / 16)]
)
def test_a_single_element_and_equal_ones(shape, value, expected):
    chex.assert_trees_all_close(sg.reference_scale(jnp.full(shape, value)), expected)


@pytest.mark.parametrize(
    "tree",
    [{}, [], None, jnp.arange(3), jnp.zeros((0, 3)), {"a": np.zeros(2, bool)}],
    ids=["dict", "list", "None", "int", "no elements", "bool"],
)
def test_nothing_to_measure(tree):
    with pytest.raises(ValueError, match="no floating-point elements"):
        sg.reference_scale(tree)


# --- value_and_grad_with_reference ----------------------------------------------------


def init_params(key=0, widths=(3, 16, 16, 2)):
    keys = jax.random.split(jax.random.key(key), len(widths) - 1)
    return [
        {"w": jax.random.normal(k, (m, n)), "b": jax.random.normal(k, (n,))}
        for k, m, n in zip(keys, widths, widths[1:], strict=False)
    ]


def predict(params, x, *unused):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def mean_square_error(predictions, x, y, weight=1.0):
    del x
    return weight * jnp.mean((predictions - y) ** 2)


@pytest.fixture
def params():
    return init_params()


@pytest.fixture
def batch():
    x_key, y_key = jax.random.split(jax.random.key(1))
    return jax.random.normal(x_key, (10, 3)), jax.random.normal(y_key, (10, 2))


def composed(predict, loss):
    return lambda params, *args: loss(predict(params, *args), *args)


def expected_reference(predict, loss, params, *args):
    prediction_grads = jax.grad(loss)(predict(params, *args), *args)
    return std(*jax.tree.leaves(prediction_grads))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_equals_value_and_grad(params, batch, transform):
    f = transform(sg.value_and_grad_with_reference(predict, mean_square_error))
    value, grads, reference = f(params, *batch)
    expected = jax.value_and_grad(composed(predict, mean_square_error))(params, *batch)
    chex.assert_trees_all_close((value, grads), expected, rtol=1e-5, atol=1e-6)
    chex.assert_shape(reference, ())
    np.testing.assert_allclose(
        reference,
        expected_reference(predict, mean_square_error, params, *batch),
        rtol=1e-5,
    )


def test_extra_arguments_reach_both(params, batch):
    def scaled_predict(params, x, y, weight):
        return weight * predict(params, x)

    f = sg.value_and_grad_with_reference(scaled_predict, mean_square_error)
    args = (*batch, jnp.float32(3.0))
    value, grads, reference = f(params, *args)
    expected = jax.value_and_grad(composed(scaled_predict, mean_square_error))
    chex.assert_trees_all_close(
        (value, grads), expected(params, *args), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        reference,
        expected_reference(scaled_predict, mean_square_error, params, *args),
        rtol=1e-5,
    )


def test_has_aux(params, batch):
    def predict_with_aux(params, x, y):
        predictions = predict(params, x)
        return predictions, {"largest": jnp.max(predictions), "count": len(x)}

    f = sg.value_and_grad_with_reference(
        predict_with_aux, mean_square_error, has_aux=True
    )
    (value, aux), grads, reference = f(params, *batch)
    plain = sg.value_and_grad_with_reference(predict, mean_square_error)
    chex.assert_trees_all_close((value, grads, reference), plain(params, *batch))
    assert set(aux) == {"largest", "count"}
    chex.assert_trees_all_close(aux["largest"], jnp.max(predict(params, batch[0])))
    assert aux["count"] == 10


def test_predictions_are_any_pytree(params, batch):
    x, y = batch

    def fields(params, x, y):
        out = predict(params, x)
        # An integer prediction, as a metric needs it, has no gradient.
        return {"u": out[:, :1], "v": (out[:, 1],), "class": jnp.argmax(out, axis=1)}

    def loss(fields, x, y):
        errors = (fields["u"] - y[:, :1], 10.0 * (fields["v"][0] - y[:, 1]))
        return sum(jnp.mean(e**2) for e in errors)

    f = sg.value_and_grad_with_reference(fields, loss)
    value, grads, reference = jax.jit(f)(params, x, y)
    expected = jax.value_and_grad(composed(fields, loss))(params, x, y)
    chex.assert_trees_all_close((value, grads), expected, rtol=1e-4, atol=1e-3)
    u, v = predict(params, x).T
    du, dv = 2 * (u - y[:, 0]) / 10, 200 * (v - y[:, 1]) / 10
    np.testing.assert_allclose(reference, std(du, dv), rtol=1e-5)


def test_predictions_of_a_physics_informed_network():
    """The residual is the prediction: it holds derivatives of the network."""

    def residual(params, points):
        def field(point):
            return predict(params, point)[0]

        return jax.vmap(lambda x: jnp.trace(jax.hessian(field)(x)))(points)

    def loss(residual, points):
        return jnp.mean(residual**2)

    params = init_params(widths=(2, 8, 1))
    points = jax.random.normal(jax.random.key(2), (6, 2))
    f = jax.jit(sg.value_and_grad_with_reference(residual, loss))
    value, grads, reference = f(params, points)
    expected = jax.jit(jax.value_and_grad(composed(residual, loss)))(params, points)
    chex.assert_trees_all_close((value, grads), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        reference, std(2 * residual(params, points) / 6), rtol=1e-4
    )


def test_predict_and_loss_are_called_once(params, batch):
    calls = []

    def counted(name, f):
        def call(*args):
            calls.append(name)
            return f(*args)

        return call

    f = sg.value_and_grad_with_reference(
        counted("predict", predict), counted("loss", mean_square_error)
    )
    f(params, *batch)
    assert calls == ["predict", "loss"]


def count_primitives(f, *args):
    text = str(jax.make_jaxpr(f)(*args))
    return {name: text.count(f" {name}") for name in ("dot_general", "tanh ")}


def test_one_forward_and_one_backward_pass(params, batch):
    f = sg.value_and_grad_with_reference(predict, mean_square_error)
    plain = jax.value_and_grad(composed(predict, mean_square_error))
    count = count_primitives(f, params, *batch)
    assert count == count_primitives(plain, params, *batch)
    # Three layers: forward, to the weights, and to the input of all but the first.
    assert count["dot_general"] == 3 + 3 + 2
    assert count["tanh "] == 2


def test_vmap_over_targets(params, batch):
    x, _ = batch
    targets = jax.random.normal(jax.random.key(3), (4, 10, 2))
    f = sg.value_and_grad_with_reference(predict, mean_square_error)
    mapped = jax.jit(jax.vmap(f, in_axes=(None, None, 0)))(params, x, targets)
    each = [f(params, x, y) for y in targets]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    chex.assert_trees_all_close(mapped, stacked, rtol=1e-5, atol=1e-5)


def test_vmap_over_an_ensemble(batch):
    members = [init_params(key) for key in range(3)]
    ensemble = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    f = sg.value_and_grad_with_reference(predict, mean_square_error)
    mapped = jax.vmap(f, in_axes=(0, None, None))(ensemble, *batch)
    each = [f(params, *batch) for params in members]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    chex.assert_trees_all_close(mapped, stacked, rtol=1e-5, atol=1e-6)


def test_complex_params_have_the_gradient_of_jax_grad():
    key = jax.random.key(0)
    params = {
        "w": jax.random.normal(key, (3, 2), jnp.complex64),
        "phase": jnp.complex64(0.3 + 0.4j),
    }
    x = jax.random.normal(jax.random.key(1), (5, 3), jnp.complex64)

    def wave(params, x):
        return params["phase"] * jnp.sin(x @ params["w"])

    def loss(psi, x):
        return jnp.mean(jnp.abs(psi - 1) ** 2)

    f = sg.value_and_grad_with_reference(wave, loss)
    value, grads, reference = f(params, x)
    expected = jax.value_and_grad(composed(wave, loss))(params, x)
    chex.assert_trees_all_close((value, grads), expected, rtol=1e-5)
    np.testing.assert_allclose(
        reference, expected_reference(wave, loss, params, x), rtol=1e-5
    )


def test_bfloat16_predictions(params, batch):
    x, y = batch

    def half_predict(params, x, y):
        return predict(params, x).astype(jnp.bfloat16)

    def loss(predictions, x, y):
        return jnp.mean((predictions.astype(jnp.float32) - y) ** 2)

    f = sg.value_and_grad_with_reference(half_predict, loss)
    value, grads, reference = f(params, x, y)
    assert value.dtype == reference.dtype == jnp.float32
    chex.assert_trees_all_equal_dtypes(grads, params)
    prediction_grads = jax.grad(loss)(half_predict(params, x, y), x, y)
    assert prediction_grads.dtype == jnp.bfloat16
    np.testing.assert_allclose(reference, std(prediction_grads), rtol=1e-5)


def test_reference_of_a_bfloat16_loss_is_float32(params, batch):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, *batch))
    f = sg.value_and_grad_with_reference(predict, mean_square_error)
    value, grads, reference = jax.jit(f)(*half)
    assert value.dtype == jnp.bfloat16
    assert reference.dtype == jnp.float32
    chex.assert_trees_all_equal_dtypes(grads, half[0])


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda predictions, x, y: jnp.mean(predictions, axis=0), r"float32\[2\]"),
        (lambda predictions, x, y: jnp.mean(predictions)[None], r"float32\[1\]"),
        (lambda predictions, x, y: jnp.sum(predictions > 0), r"int32\[\]"),
        (lambda predictions, x, y: jnp.mean(predictions) * 1j, r"complex64\[\]"),
    ],
    ids=["vector", "one element", "integer", "complex"],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_loss_must_be_a_real_scalar(params, batch, transform, loss, got):
    f = transform(sg.value_and_grad_with_reference(predict, loss))
    with pytest.raises(ValueError, match=f"floating-point scalar, got {got}"):
        f(params, *batch)


def test_predictions_without_a_gradient(params, batch):
    f = sg.value_and_grad_with_reference(
        lambda params, x, y: {}, lambda predictions, x, y: jnp.mean(y)
    )
    with pytest.raises(ValueError, match="no floating-point elements"):
        f(params, *batch)
