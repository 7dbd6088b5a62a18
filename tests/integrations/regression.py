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
STEPS = 100
SCHEDULE = optax.cosine_decay_schedule(1e-2, STEPS)
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


def initial_layers(sizes=SIZES):
    """Pairs of weight and bias."""
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=np.float32)
    return initialise(
        [(float32((n, m)), float32((m,))) for n, m in itertools.pairwise(sizes)]
    )


def predict(layers, x, y=None):
    """A tanh network, as pairs of weight and bias."""
    del y
    *hidden, (weight, bias) = layers
    for W, b in hidden:
        x = jnp.tanh(x @ W + b)
    return x @ weight + bias


def mean_square_error(predictions, x, y):
    del x
    return jnp.mean((predictions - y) ** 2)


def losses(layers, x, y):
    edge = predict(layers, x[:1])
    return {
        "fit": mean_square_error(predict(layers, x), x, y),
        "edge": jnp.mean(edge**2),
    }


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
    before, after = (_to_numpy(layers(updates)) for updates in seen)
    scales = [weight.std() for weight, _ in before]
    assert not np.allclose(scales, reference, rtol=0.5)  # there was something to do
    for scale, old, new in zip(scales, before, after, strict=True):
        np.testing.assert_allclose(new[0].std(), reference, rtol=1e-4)
        for leaf, rescaled in zip(old, new, strict=True):
            np.testing.assert_allclose(rescaled, reference / scale * leaf, rtol=1e-4)


def scale_of_prediction_gradient(predictions):
    """The paper's reference for the mean square error, written out."""
    residuals = np.asarray(predictions, np.float64) - y
    return (2 * residuals / residuals.size).std()


def check_same_layers(layers, expected):
    """Pairs of weight and bias that agree up to rounding error."""
    for got, wanted in zip(_to_numpy(layers), _to_numpy(expected), strict=True):
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def _to_numpy(layers):
    return [tuple(np.asarray(leaf, np.float64) for leaf in layer) for layer in layers]


value_and_grad = sg.value_and_grad_with_reference(predict, mean_square_error)


def train_unstacked(tx, layers, steps, *, forward_reference=False):
    """What `steps` of training make of layers that are not stacked.

    Stacked networks are compared with it. Returns the layers, and the reference of the
    last step.
    """

    @jax.jit
    def train_step(layers, opt_state):
        _, grads, reference = value_and_grad(layers, x, y)
        extra = {"reference": reference} if forward_reference else {}
        updates, opt_state = tx.update(grads, opt_state, layers, **extra)
        return optax.apply_updates(layers, updates), opt_state, reference

    layers = [tuple(np.asarray(leaf) for leaf in layer) for layer in layers]
    opt_state = tx.init(layers)
    for _ in range(steps):
        layers, opt_state, reference = train_step(layers, opt_state)
    return layers, reference


# --- balance_terms: the terms of a loss ---


def balanced(**options):
    return optax.chain(sg.balance_terms(TERMS, **options), optax.adam(SCHEDULE))


def check_terms(history, opt_state):
    """Each term has become smaller, and each was weighted at every step."""
    first, last = ({name: float(v) for name, v in history[i].items()} for i in (0, -1))
    assert all(last[name] < first[name] / 10 for name in TERMS), (first, last)
    counts = optax.tree.get(opt_state, "counts")
    assert {name: int(counts[name]) for name in TERMS} == dict.fromkeys(
        TERMS, len(history)
    )
