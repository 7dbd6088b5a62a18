"""The regression that clients are trained on, and what is asked of each of them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import stablegrad_optax as sg

DEPTH, WIDTH = 3, 16
SIZES = (1, *DEPTH * [WIDTH], 1)
STEPS = 10
TERMS = ("fit", "edge")

x = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
y = np.sin(np.pi * x)


def initialise(shapes):
    """Weights and biases for a tree of jax.ShapeDtypeStruct; other leaves are kept.

    Drawn by NumPy: each of JAX's draws takes longer to compile than a training step.
    """
    rng = np.random.default_rng(0)

    def draw(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, shapes)


def train(train_step, *carry, steps=STEPS):
    """What is carried from step to step, and a list of what each returns beside it."""
    history = []
    for _ in range(steps):
        *carry, value = train_step(*carry, x, y)
        history.append(value)
    return *carry, history


# --- A tanh network as pairs of weight and bias, which clients are compared with ---


def initial_layers(sizes=SIZES):
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=np.float32)
    return initialise(
        [(float32((n, m)), float32((m,))) for n, m in itertools.pairwise(sizes)]
    )


def predict(layers, x, y=None):
    *hidden, (weight, bias) = layers
    for W, b in hidden:
        x = jnp.tanh(x @ W + b)
    return x @ weight + bias


def mean_square_error(predictions, x, y):
    return jnp.mean((predictions - y) ** 2)


def losses(layers, x, y):
    fit = mean_square_error(predict(layers, x), x, y)
    return {"fit": fit, "edge": jnp.mean(predict(layers, x[:1]) ** 2)}


# --- stablegrad: what reaches the base ---


def observed(base, **options):
    """StableGrad in front of a base; its state has the updates before and after."""
    return optax.chain(
        optax.snapshot("before", lambda updates: updates),
        sg.stablegrad(**options),
        optax.snapshot("after", lambda updates: updates),
        base,
    )


def check_layers(opt_state, layers, reference=1.0):
    """Every layer reached the base at the reference, its bias by the same gain.

    `layers` takes a gradient apart into pairs of weight and bias, one for each layer;
    `opt_state` is that of `observed`.
    """
    seen = (optax.tree.get(opt_state, name) for name in ("before", "after"))
    before, after = (jax.tree.map(np.asarray, layers(updates)) for updates in seen)
    gains = [reference / weight.std() for weight, _ in before]
    assert not np.allclose(gains, 1, rtol=0.5)  # there was something to do
    expected = [
        (gain * weight, gain * bias)
        for gain, (weight, bias) in zip(gains, before, strict=True)
    ]
    assert_close(after, expected, rtol=1e-4)


def check_trained_as(before, after, base, *, steps=STEPS, with_reference=False):
    """`steps` of training made of the layers what they make of ones by themselves."""
    tx = optax.chain(sg.stablegrad(), base)
    value_and_grad = sg.value_and_grad_with_reference(predict, mean_square_error)

    @jax.jit
    def train_step(layers, opt_state, x, y):
        value, grads, reference = value_and_grad(layers, x, y)
        extra = {"reference": reference} if with_reference else {}
        updates, opt_state = tx.update(grads, opt_state, layers, **extra)
        return optax.apply_updates(layers, updates), opt_state, value

    before = [tuple(layer) for layer in before]
    expected, _, _ = train(train_step, before, tx.init(before), steps=steps)
    assert_close([tuple(layer) for layer in after], expected, rtol=1e-3, atol=1e-5)


def assert_close(got, expected, **tolerances):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerances), got, expected
    )


def scale_of_prediction_gradient(predictions):
    """The paper's reference for the mean square error, written out."""
    residuals = np.asarray(predictions, np.float64) - y
    return (2 * residuals / residuals.size).std()


# --- balance_terms ---


def balanced():
    return optax.chain(sg.balance_terms(TERMS), optax.adam(1e-2))


def check_terms(history, opt_state):
    """Each term became smaller, and has counted at every step."""
    first, last = history[0], history[-1]
    assert all(float(last[name]) < float(first[name]) for name in TERMS)
    counts = optax.tree.get(opt_state, "counts")
    assert [int(counts[name]) for name in TERMS] == [len(history)] * len(TERMS)
