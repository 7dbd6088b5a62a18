"""Methods for loss terms: each by the formula of its paper, and one table of them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stablegrad_optax as sg
from benchmarks.loss_terms import __main__ as benchmark
from benchmarks.loss_terms import figure
from benchmarks.loss_terms.methods import METHODS, OPTIMIZERS, VARIANTS

TERMS = ("residual", "boundary", "initial")
WEIGHT = 30.0


def gradients(step=0):
    rng = np.random.default_rng(step)

    def draw(scale, *shape):
        return jnp.asarray(rng.normal(0.1 * scale, scale, shape), jnp.float32)

    return {
        term: {"kernel": draw(scale, 2, 4, 4), "bias": draw(scale, 3)}
        for term, scale in zip(TERMS, (3.0, 1e-2, 0.5), strict=True)
    }


def rows(step=0):
    """A row for each term, in double precision."""
    grads = gradients(step)
    return np.stack([flat(grads[term]) for term in TERMS])


def flat(tree):
    return np.concatenate([np.ravel(x).astype(float) for x in jax.tree.leaves(tree)])


VALUES = dict(zip(TERMS, (2.0, 1e-3, 0.1), strict=True))


def results(tx, steps):
    """What a method makes of the gradients of some steps."""
    found = []
    state = tx.init(gradients()["residual"])
    update = jax.jit(tx.update)
    for step in range(steps):
        total, state = update(gradients(step), state, values=VALUES)
        found.append(flat(total))
    return found


def gradient_norms(grads):
    norms = np.linalg.norm(grads, axis=1)
    return norms.sum() / norms


@pytest.mark.parametrize(
    ("method", "decay", "every", "weights_of"),
    [
        ("weight", 0, 1, lambda _: [1, WEIGHT, WEIGHT]),
        ("equal scales (0.1)", 0, 1, lambda g: 1 / np.sqrt(np.mean(g**2, axis=1))),
        # Wang et al. 2023, algorithm 1: λ_k <- 0.9 λ_k + 0.1 Σ |g| / |g_k|
        ("gradient norms", 0.9, 100, gradient_norms),
        # Wang et al. 2021, algorithm 1: λ_k <- 0.1 λ_k + 0.9 max |g_r| / mean |g_k|
        (
            "annealing",
            0.1,
            10,
            lambda g: np.append(1, np.abs(g[0]).max() / np.abs(g[1:]).mean(axis=1)),
        ),
    ],
)
def test_weights_follow_the_paper(method, decay, every, weights_of):
    options = {"weight": WEIGHT} if method == "weight" else {}
    tx, weights = METHODS[method](TERMS, 9, **options), np.ones(3)
    for step, total in enumerate(results(tx, every + 1)):
        if step % every == 0:
            new = np.asarray(weights_of(rows(step)))
            weights = decay * weights + (1 - decay) * new
        np.testing.assert_allclose(total, weights @ rows(step), rtol=1e-3, atol=1e-5)


def test_balanced_is_the_library_and_fades_over_the_second_half():
    totals = list(results(METHODS["balanced"](TERMS, 4), 5))
    default = VARIANTS["settings"](TERMS, 4, decay=0.99, power=0.5)
    np.testing.assert_array_equal(totals, results(default, 5))
    for step, total in enumerate(results(sg.balance_terms(TERMS), 5)):
        assert np.allclose(totals[step], total, rtol=1e-5) == (step <= 2)
    scales = np.sqrt(np.mean(rows(4) ** 2, axis=1))
    np.testing.assert_allclose(totals[4], (1 / scales) @ rows(4), rtol=1e-3, atol=1e-5)


def test_config():
    """Of Liu et al. 2024, equation 2, by the pseudo-inverse of the unit gradients."""
    (total,) = results(METHODS["ConFIG"](TERMS, 9), 1)
    units = rows() / np.linalg.norm(rows(), axis=1, keepdims=True)
    direction = np.linalg.pinv(units) @ np.ones(3)
    direction /= np.linalg.norm(direction)
    expected = (rows() @ direction).sum() * direction
    np.testing.assert_allclose(total, expected, rtol=1e-3, atol=1e-5)


def test_dynamic_norms():
    """Of Deguchi and Asai 2023: a mean of |g_r| / |g_k|, corrected as Adam's."""
    average = 0.0
    for step, total in enumerate(results(METHODS["DN-PINN"](TERMS, 9), 21)):
        if step % 10 == 0:
            norms = np.linalg.norm(rows(step), axis=1)
            average = 0.99 * average + 0.01 * norms[0] / norms
        weights = average / (1 - 0.99 ** (step // 10 + 1))
        np.testing.assert_allclose(total, weights @ rows(step), rtol=1e-3, atol=1e-5)


def optimizer_of(method, base):
    return OPTIMIZERS[method](TERMS, base, optax.constant_schedule(1.0))


def test_multi_adam():
    """Of Yao et al. 2023, algorithm 1: the mean of Adam's steps for each term."""
    first = second = 0.0
    for step, total in enumerate(results(optimizer_of("MultiAdam", None), 3)):
        first = 0.99 * first + 0.01 * rows(step)
        second = 0.99 * second + 0.01 * rows(step) ** 2
        correction = 1 - 0.99 ** (step + 1)
        steps = first / correction / (np.sqrt(second / correction) + 1e-8)
        np.testing.assert_allclose(total, -steps.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_auto_balance():
    """Of An et al. 2025: the sum of an optimizer's steps for each term."""
    sign = optax.scale_by_sign()
    for step, total in enumerate(results(optimizer_of("AutoBalance", sign), 2)):
        np.testing.assert_allclose(total, np.sign(rows(step)).sum(axis=0))


@pytest.mark.parametrize(
    ("variant", "average"),
    [
        ("mean of squares", lambda past, w: np.sqrt(w @ past**2)),
        ("mean of log", lambda past, w: np.exp(w @ np.log(past))),
        ("mean", lambda past, w: w @ past),
        ("largest of the first hundred", lambda past, w: past[:100].max(axis=0)),
    ],
)
def test_memories(variant, average):
    """The rule of docs/loss_terms.md with another mean of the scales so far."""
    past = np.empty((0, len(TERMS)))
    values = np.array([VALUES[term] for term in TERMS])
    steps = 103 if "hundred" in variant else 4
    for step, total in enumerate(results(VARIANTS[variant](TERMS, 9), steps)):
        scales = np.sqrt(np.mean(rows(step) ** 2, axis=1))
        past = np.vstack([past, scales])
        weights = 0.99 ** np.arange(len(past))[::-1]
        remembered = average(past, weights / weights.sum())
        pull = np.sqrt(values / scales / np.max(values / scales))
        factors = pull / np.maximum(remembered, scales / 3)
        np.testing.assert_allclose(total, factors @ rows(step), rtol=1e-3, atol=1e-5)


def test_record_and_figure_and_nothing_is_run_twice(tmp_path, monkeypatch, capsys):
    case = "Helmholtz 5 x 50"
    short = dataclasses.replace(benchmark.CASES[case], depth=2, steps=20)
    monkeypatch.setitem(benchmark.EVERY, case, short)
    out = tmp_path / "terms.json"
    options = benchmark.Options(
        out=out,
        cases=(case,),
        bases=("muon",),
        methods=("balanced", "weight", "MultiAdam"),
        weights=(1.0, 100.0),
        rates=(5e-3,),
        seeds=2,
    )
    benchmark.main(options)
    runs = json.loads(out.read_text())["runs"]
    named = [(run["method"], run.get("weight")) for run in runs]
    # MultiAdam is an optimizer itself, beside those of Adam.
    assert named == [("balanced", None), ("weight", 1.0), ("weight", 100.0)]
    assert len({error for run in runs for error in run["errors"]}) == 6
    assert "100" in capsys.readouterr().out
    for draw in (figure.weights, figure.errors, figure.profile):
        path = tmp_path / f"{draw.__name__}.png"
        draw((out,), path)
        assert path.stat().st_size > 5000
    trained = []
    nothing = {"errors": [[np.nan] * 3], "unsatisfied": [[1.0] * 3]}
    monkeypatch.setattr(benchmark, "results", lambda *x: trained.append(x) or nothing)
    benchmark.main(options)
    assert json.loads(out.read_text())["runs"] == runs
    assert trained == []
    # Other seeds take the place of the first.
    benchmark.main(dataclasses.replace(options, methods=("balanced",), seeds=3))
    *others, renewed = json.loads(out.read_text())["runs"]
    assert others == runs[1:]
    assert renewed["errors"] == [None] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": ("wave",)}, "cases must be of Poisson 1-D 16 x 32, .* got wave"),
        ({"methods": ("best",)}, "methods must be of balanced, .* got best"),
    ],
)
def test_bad_names_are_one_line(options, message):
    with pytest.raises(SystemExit, match=message):
        benchmark.main(benchmark.Options(**options))
