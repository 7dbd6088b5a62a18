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


# --- Training in a library, and what it is compared with ---

# Steps of SGD show every gain.
BASE = optax.sgd(1e-2)


def check_training(start, layers, kind="plain", **options):
    """A library's step makes of its layers what ours makes of them by themselves.

    `start` returns, for an optimizer, a step and what it carries on, and `layers` takes
    the pairs of weight and bias out of that. The step is one without a reference, with
    one ("reference") or by "terms"; the options are those of stablegrad.
    """
    step, *carry = start(optax.chain(head(kind, **options), BASE))
    before = layers(*carry)
    *carry, _ = train(step, *carry)
    check_trained_as(before, layers(*carry), kind)


def head(kind, **options):
    return sg.balance_terms(TERMS) if kind == "terms" else sg.stablegrad(**options)


def check_trained_as(before, after, kind="plain"):
    tx = optax.chain(head(kind), BASE)

    @jax.jit
    def train_step(layers, opt_state, x, y):
        extra = {}
        if kind == "terms":
            values, grads = sg.value_and_grad_of_terms(losses)(layers, x, y)
            extra["values"] = values
        else:
            f = sg.value_and_grad_with_reference(predict, mean_square_error)
            _, grads, reference = f(layers, x, y)
            if kind == "reference":
                extra["reference"] = reference
        updates, opt_state = tx.update(grads, opt_state, layers, **extra)
        return optax.apply_updates(layers, updates), opt_state, None

    before = [tuple(layer) for layer in before]
    expected, *_ = train(train_step, before, tx.init(before))
    assert_close([tuple(layer) for layer in after], expected, rtol=1e-3, atol=1e-5)


def assert_close(got, expected, **tolerances):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerances), got, expected
    )


# --- Training without a step of ours: what reaches the base ---


def observed(base):
    """StableGrad in front of a base; its state has the updates before and after."""
    return optax.chain(
        optax.snapshot("before", lambda updates: updates),
        sg.stablegrad(),
        optax.snapshot("after", lambda updates: updates),
        base,
    )


def check_layers(opt_state, layers):
    """Every layer reached the base at scale one, its bias by the same gain.

    `layers` takes a gradient apart into pairs of weight and bias, one for each layer;
    `opt_state` is that of `observed`.
    """
    seen = (optax.tree.get(opt_state, name) for name in ("before", "after"))
    before, after = (jax.tree.map(np.asarray, layers(updates)) for updates in seen)
    gains = [1 / weight.std() for weight, _ in before]
    assert not np.allclose(gains, 1, rtol=0.5)  # there was something to do
    expected = [
        (gain * weight, gain * bias)
        for gain, (weight, bias) in zip(gains, before, strict=True)
    ]
    assert_close(after, expected, rtol=1e-4)
