"""The definitions in float64 NumPy, with which the library's numbers are compared."""

import jax
import jax.numpy as jnp
import numpy as np


def random_layer(fan_in, fan_out, scale=1.0, dtype="float32", seed=0):
    """The gradient of a dense layer, with a mean of a third of its deviation."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        x = rng.normal(0.3, 1, shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * rng.normal(0.3, 1, shape)
        return jnp.asarray(scale * x, dtype)

    return {"kernel": draw(fan_in, fan_out), "bias": draw(fan_out)}


def wide(x):
    """An array in double precision."""
    x = np.asarray(x)
    return x.astype(complex if np.iscomplexobj(x) else float)


def elements(tree):
    """All elements of a tree in double precision, as one vector."""
    return np.concatenate([wide(x).ravel() for x in jax.tree.leaves(tree)])


def scale(tree, statistic="std"):
    """σ of the elements of a tree; that of a single one is its magnitude."""
    x = elements(tree)
    largest = np.abs(x).max()
    if not 0 < largest < np.inf:
        return largest
    x = x / largest  # so that squares are in range
    rms = np.sqrt(np.mean(np.abs(x) ** 2))
    is_rms = statistic == "rms" or x.size == 1
    return largest * (rms if is_rms else max(np.std(x), rms / 16))


def rescaled(layer, reference=1.0, statistic="std"):
    """The update of a layer whose weight is its kernel."""
    gain = reference / scale(layer["kernel"], statistic)
    return jax.tree.map(lambda x: gain * wide(x), layer)


def balanced(grads, values, importance, decay, power, strength=1.0):
    """Loss terms, step by step: their sum and weights, then m and t of the memory."""
    m, t = dict.fromkeys(importance, 0.0), dict.fromkeys(importance, 0)
    for g, value in zip(grads, values, strict=True):
        divisors, distances = {}, {}
        for k in importance:
            s = scale(g[k], "rms")
            if s > 0 and np.isfinite(s):
                limit = 1.2 * np.sqrt(m[k] / (1 - decay ** t[k])) if t[k] else np.inf
                m[k] = decay * m[k] + (1 - decay) * min(s, limit) ** 2
                t[k] += 1
            running = np.sqrt(m[k] / (1 - decay ** t[k])) if t[k] else 0
            divisors[k] = max(running, s / 3) ** strength * s ** (1 - strength)
            distances[k] = value[k] / s if s else 0
        farthest = max(distances.values())
        weights = {
            k: w * (distances[k] / farthest) ** (power * strength) / divisors[k]
            if divisors[k]
            else 0
            for k, w in importance.items()
        }
        with np.errstate(invalid="ignore"):  # 0 times Inf
            terms = [
                jax.tree.map(lambda x, w=w: w * wide(x), g[k])
                for k, w in weights.items()
            ]
            total = jax.tree.map(lambda *x: sum(x), *terms)
        yield total, weights, dict(m), dict(t)


def assert_close(got, expected, rtol=1e-5):
    """Leaf by leaf, and relative to its largest element: others may cancel."""

    def check(x, y):
        x, y = wide(x), wide(y)
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max(initial=0))

    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(check, got, expected)
