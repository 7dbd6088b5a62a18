"""The regression that clients are trained on, and what is asked of each of them."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import stablegrad_optax as sg

DEPTH, WIDTH = 3, 16
SIZES = (1, *DEPTH * [WIDTH], 1)
STEPS = 300
SCHEDULE = optax.cosine_decay_schedule(1e-2, STEPS)

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


class SeenState(NamedTuple):
    """The updates that passed here."""

    updates: optax.Updates


def _see():
    def init_fn(params):
        return SeenState(jax.tree.map(jnp.zeros_like, params))

    def update_fn(updates, state, params=None):
        del state, params
        return updates, SeenState(updates)

    return optax.GradientTransformation(init_fn, update_fn)


def observed(base, **options):
    """StableGrad in front of a base; its state holds what went in and what came out."""
    return optax.chain(_see(), sg.stablegrad(**options), _see(), base)


def check_layers(opt_state, layers, reference=1.0):
    """Every layer reached the base at the reference, its bias by the same gain.

    `layers` takes a gradient apart into pairs of weight and bias, one for each layer;
    `opt_state` is that of `observed`.
    """
    before, _, after, _ = opt_state
    before, after = (_to_numpy(layers(seen.updates)) for seen in (before, after))
    scales = [weight.std() for weight, _ in before]
    assert not np.allclose(scales, reference, rtol=0.5)  # there was something to do
    for scale, old, new in zip(scales, before, after, strict=True):
        np.testing.assert_allclose(new[0].std(), reference, rtol=1e-4)
        gain = reference / scale
        np.testing.assert_allclose(new[0], gain * old[0], rtol=1e-4)
        np.testing.assert_allclose(new[1], gain * old[1], rtol=1e-4)


def check_same_layers(layers, expected):
    """Pairs of weight and bias that agree up to rounding error."""
    for got, wanted in zip(_to_numpy(layers), _to_numpy(expected), strict=True):
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def _to_numpy(layers):
    return [tuple(np.asarray(leaf, np.float64) for leaf in layer) for layer in layers]


def scale_of_prediction_gradient(predictions):
    """The paper's reference for the mean square error, written out."""
    residuals = np.asarray(predictions, np.float64) - y
    return (2 * residuals / residuals.size).std()


def initial_layers():
    """Pairs of weight and bias."""
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=np.float32)
    return initialise(
        [(float32((n, m)), float32((m,))) for n, m in itertools.pairwise(SIZES)]
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
