"""Methods for loss terms: each by the formula of its paper, and one table of them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import term_steps
from benchmarks.loss_terms import __main__ as benchmark
from benchmarks.loss_terms import figure, measure
from benchmarks.loss_terms.methods import BASES, METHODS, OURS, PEERS, VARIANTS

pytestmark = pytest.mark.program

RESIDUAL = 1
WEIGHT = 30.0


def random_grads(step=0):
    """Those of three terms, stacked; the second one is the residual."""
    rng = np.random.default_rng(step)
    scales = np.array([1e-2, 3.0, 0.5])

    def draw(*shape):
        x = rng.normal(0.1, 1, (3, *shape)) * scales.reshape(3, *[1] * len(shape))
        return jnp.asarray(x, jnp.float32)

    return {"hidden": {"kernel": draw(2, 4, 4), "bias": draw(2, 4)}, "last": draw(4, 1)}


def rows(grads):
    """A row for each term, in double precision."""
    leaves = [np.float64(x).reshape(3, -1) for x in jax.tree.leaves(grads)]
    return np.concatenate(leaves, axis=1)


def flat(total):
    return np.concatenate([np.ravel(x).astype(float) for x in jax.tree.leaves(total)])


def results(method, steps):
    """What a method makes of the gradients of some steps."""
    tx, found = METHODS[method], []
    state = tx.init(jax.tree.map(jnp.zeros_like, random_grads()))
    update = jax.jit(tx.update)
    for step in range(steps):
        total, state = update(
            random_grads(step), state, weight=WEIGHT, residual=RESIDUAL
        )
        found.append(flat(total))
    return found


def assert_weights(got, step, weights):
    np.testing.assert_allclose(got, weights @ rows(random_grads(step)), rtol=1e-3)


def norms(step):
    return np.linalg.norm(rows(random_grads(step)), axis=1)


def rms(step):
    return np.sqrt(np.mean(rows(random_grads(step)) ** 2, axis=1))


def test_fixed_weight():
    (total,) = results("weight", 1)
    assert_weights(total, 0, [WEIGHT, 1, WEIGHT])


def test_balanced():
    (total,) = results("balanced", 1)
    assert_weights(total, 0, 1 / rms(0))


def test_gradient_norms_are_averaged_every_hundred_steps():
    """Of Wang et al. 2023, algorithm 1: λ_k <- 0.9 λ_k + 0.1 Σ |g| / |g_k|."""
    found = results("gradient norms", 101)
    weights = 0.9 + 0.1 * norms(0).sum() / norms(0)
    for step in (0, 1, 99):
        assert_weights(found[step], step, weights)
    weights = 0.9 * weights + 0.1 * norms(100).sum() / norms(100)
    assert_weights(found[100], 100, weights)


def test_annealing():
    """Of Wang et al. 2021, algorithm 1: λ_k <- 0.1 λ_k + 0.9 max |g_r| / mean |g_k|."""

    def new(step):
        grads = np.abs(rows(random_grads(step)))
        weights = grads[RESIDUAL].max() / grads.mean(axis=1)
        weights[RESIDUAL] = 1
        return weights

    found = results("annealing", 11)
    weights = 0.1 + 0.9 * new(0)
    assert_weights(found[0], 0, weights)
    assert_weights(found[9], 9, weights)
    assert_weights(found[10], 10, 0.1 * weights + 0.9 * new(10))


def test_config():
    """Of Liu et al. 2024, equation 2, by the pseudo-inverse of the unit gradients."""
    (total,) = results("ConFIG", 1)
    grads = rows(random_grads())
    units = grads / np.linalg.norm(grads, axis=1, keepdims=True)
    direction = np.linalg.pinv(units) @ np.ones(3)
    direction /= np.linalg.norm(direction)
    np.testing.assert_allclose(
        total, (grads @ direction).sum() * direction, rtol=1e-3, atol=1e-5
    )
    cosines = units @ total / np.linalg.norm(total)
    np.testing.assert_allclose(cosines, cosines[0], rtol=1e-4)
    assert cosines[0] > 0


def test_multi_adam():
    """Of Yao et al. 2023, algorithm 1: the mean of Adam's steps for each term."""
    found = results("MultiAdam", 3)
    first = second = 0.0
    for step, total in enumerate(found):
        grads = rows(random_grads(step))
        first = 0.99 * first + 0.01 * grads
        second = 0.99 * second + 0.01 * grads**2
        correction = 1 - 0.99 ** (step + 1)
        steps = first / correction / (np.sqrt(second / correction) + 1e-8)
        np.testing.assert_allclose(total, steps.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_variants():
    for name, weights in {
        "balanced, scale of the residual": rms(0)[RESIDUAL] / rms(0),
        "balanced, geometric mean": np.exp(np.log(rms(0)).mean()) / rms(0),
        "balanced, max_ratio 100": np.minimum(1 / rms(0), 100 / rms(0).max()),
    }.items():
        (total,) = results(name, 1)
        assert_weights(total, 0, weights)
    first, second = results("balanced, average 0.9", 2)
    assert_weights(first, 0, 1 / rms(0))
    assert_weights(second, 1, 1 / ((0.09 * rms(0) + 0.1 * rms(1)) / (1 - 0.9**2)))


def test_balanced_per_layer():
    (total,) = results("balanced, per layer", 1)
    grads = jax.tree.map(np.float64, random_grads())
    kernel, bias = grads["hidden"]["kernel"], grads["hidden"]["bias"]
    scale = np.sqrt(np.mean(kernel**2, axis=(2, 3)))  # terms, layers
    last = (
        grads["last"] / np.sqrt(np.mean(grads["last"] ** 2, axis=(1, 2)))[:, None, None]
    )
    expected = {
        "hidden": {
            "kernel": (kernel / scale[..., None, None]).sum(0),
            "bias": (bias / scale[..., None]).sum(0),
        },
        "last": last.sum(0),
    }
    np.testing.assert_allclose(total, flat(expected), rtol=1e-4, atol=1e-5)


def test_record_and_figure_and_nothing_is_run_twice(tmp_path, monkeypatch, capsys):
    out = tmp_path / "terms.json"
    options = benchmark.Options(
        out=out,
        cases=("Helmholtz 5 x 50",),
        bases=("adam",),
        methods=("balanced", "weight"),
        weights=(1.0, 100.0),
        seeds=2,
        steps=20,
    )
    options.check()
    benchmark.main(options)
    runs = json.loads(out.read_text())["runs"]
    named = [(run["method"], run.get("weight")) for run in runs]
    assert named == [("balanced", None), ("weight", 1.0), ("weight", 100.0)]
    errors = [run["errors"] for run in runs]
    assert np.shape(errors) == (3, 2)
    assert len(set(np.ravel(errors))) == 6
    assert out.with_suffix(".png").stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "weight 100" in printed
    figure.main((out,), tmp_path / "adam.png", base="adam")
    assert (tmp_path / "adam.png").read_bytes() == out.with_suffix(".png").read_bytes()
    trained = []
    monkeypatch.setattr(
        benchmark, "errors", lambda *x: trained.append(x) or np.ones((1, 1, x[-1]))
    )
    benchmark.main(options)
    assert json.loads(out.read_text())["runs"] == runs
    assert trained == []
    # Another rate, or another number of seeds, is another run.
    only = dataclasses.replace(options, methods=("balanced",))
    benchmark.main(dataclasses.replace(only, lr=(1e-2,)))
    assert len(json.loads(out.read_text())["runs"]) == 4
    benchmark.main(dataclasses.replace(only, seeds=3))
    assert len(json.loads(out.read_text())["runs"]) == 4
    assert [(x[3], x[-1]) for x in trained] == [((1e-2,), 2), ((5e-3,), 3)]


@pytest.mark.parametrize("steps", [5, 20, 21, 3000])
def test_every_step_is_made_once(steps):
    made = [i for bounds in measure.chunks(steps) for i in range(*bounds)]
    assert made == list(range(steps))


def test_what_a_step_costs_is_recorded_for_each_way(tmp_path, capsys):
    out = tmp_path / "steps.json"
    options = term_steps.Options(depth=2, width=4, points=8, rounds=2, out=out)
    term_steps.main(options)
    methods = json.loads(out.read_text())["methods"]
    assert list(methods) == ["one loss", "balanced terms", "weighted sum of terms"]
    for found in methods.values():
        assert len(found["seconds"]) == 2
        assert min(found["seconds"]) > 0
    assert "balanced terms" in capsys.readouterr().out


def test_sets_hold_every_method_and_multi_adam_is_an_adam():
    options = benchmark.Options(methods=("study", "ablation"), bases=BASES)
    methods = {method for _, _, method in options.runs()}
    assert methods == set(METHODS) == {*OURS, "weight", *PEERS, *VARIANTS}
    bases = {base for _, base, method in options.runs() if method == "MultiAdam"}
    assert bases == {"adam"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": ("wave",)}, "cases must be of 'Helmholtz 7 x 50', .* got 'wave'"),
        ({"methods": ("best",)}, "methods must be of 'study', .* got 'best'"),
        ({"weights": (0.0,)}, "weights must be positive, got 0"),
        ({"seeds": 0}, "seeds must be positive, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        benchmark.Options(**options).check()
