"""The single-file examples: they are short, stand alone, and learn."""

import ast
import contextlib
import inspect
import io
import json
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

from benchmarks import minimal_examples
from examples import minimal_image_classifier as classifier
from examples import minimal_pinn as pinn


@pytest.fixture(scope="module")
def small():
    """Networks with fewer layers, whose random weights compile faster."""
    with pytest.MonkeyPatch.context() as patch, jax.default_prng_impl("rbg"):
        patch.setattr(pinn, "DEPTH", 6)
        patch.setattr(pinn, "STEPS_PER_CALL", 50)
        patch.setattr(classifier, "WIDTH", 16)
        patch.setattr(classifier, "BLOCKS_PER_STAGE", 1)
        yield


class ClassifierRun(NamedTuple):
    """A short training: the result, what was printed, arguments of the last step."""

    accuracy: float
    output: str
    last_step: tuple[Any, ...]


@pytest.fixture(scope="module")
def classifier_run(small):
    steps = []
    train_step = classifier.train_step

    def record(*args):
        steps.append(args)
        return train_step(*args)

    with pytest.MonkeyPatch.context() as patch, io.StringIO() as output:
        patch.setattr(classifier, "train_step", record)
        with contextlib.redirect_stdout(output):
            accuracy = classifier.main(epochs=3)
        return ClassifierRun(accuracy, output.getvalue(), steps[-1])


def printed(name, text):
    """The numbers that were printed behind a name, in order."""
    return [float(number) for number in re.findall(rf"{name} +([\d.e+-]+)", text)]


@pytest.mark.parametrize("example", [pinn, classifier])
def test_a_single_short_file(example):
    source = inspect.getsource(example)
    assert len(source.splitlines()) <= 150
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert not node.module.startswith("examples")


@pytest.mark.smoke
def test_image_classifier_learns(classifier_run):
    accuracy, output, _ = classifier_run
    assert accuracy > 0.5  # chance is 0.1
    assert "8 layers, 8 with weights" in output
    losses = printed("loss", output)
    assert len(losses) == 3
    assert losses[-1] < losses[0] / 1.5
    assert printed("test accuracy", output)[-1] == pytest.approx(accuracy, abs=1e-4)


def momenta_of_weights(optimizer):
    leaves = jax.tree.leaves(optax.tree.get(optimizer.opt_state, "trace"))
    return [np.asarray(leaf) for leaf in leaves if leaf.ndim > 1]


def test_image_classifier_brings_layers_to_the_scale_of_the_prediction_gradient(
    classifier_run,
):
    model, optimizer, images, labels = classifier_run.last_step
    # The gradient of the mean cross-entropy with respect to the logits.
    error = jax.nn.softmax(model(images)) - jax.nn.one_hot(labels, 10)
    reference = np.std(error) / len(labels)
    before = momenta_of_weights(optimizer)
    classifier.train_step(model, optimizer, images, labels)
    after = momenta_of_weights(optimizer)
    assert len(after) == 8
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(np.std(new - 0.9 * old), reference, rtol=1e-3)


def test_laplacian_sums_the_second_derivatives():
    points = np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype(np.float32)
    x, y = points.T
    actual = pinn.laplacian(lambda p: p[..., 0] ** 3 * p[..., 1] ** 2, points)
    np.testing.assert_allclose(actual, 6 * x * y**2 + 2 * x**3, rtol=1e-5, atol=1e-6)


def test_exact_solution_solves_the_equation():
    points = np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype(np.float32)
    laplacian = pinn.laplacian(pinn.exact, points)
    np.testing.assert_allclose(laplacian, pinn.source(points), rtol=1e-4, atol=1e-4)
    boundary = points / np.abs(points).max(axis=1, keepdims=True)
    np.testing.assert_allclose(pinn.exact(boundary), 0, atol=1e-6)


def test_boundary_points_are_uniform_on_the_four_edges(monkeypatch):
    monkeypatch.setattr(pinn, "BOUNDARY_POINTS", 8000)
    _, boundary = pinn.sample_points(jax.random.key(0))
    np.testing.assert_allclose(np.abs(boundary).max(axis=1), 1, rtol=1e-6)
    for axis in (0, 1):
        for sign in (-1, 1):
            on_edge = np.isclose(boundary[:, axis], sign, rtol=1e-6, atol=0)
            along = np.asarray(boundary)[on_edge, 1 - axis]
            counts, _ = np.histogram(along, bins=4, range=(-1, 1))
            # 500 are expected in each quarter of an edge: within five deviations.
            assert (np.abs(counts - 500) < 5 * 500**0.5).all()


@pytest.mark.usefixtures("small")
def test_pinn_multiplies_matrices_at_the_highest_precision(monkeypatch):
    precisions = []

    def record(*args):
        precisions.append(jax.config.jax_default_matmul_precision)

    monkeypatch.setattr(pinn, "train", lambda *args: {"residual": record() or 1.0})
    monkeypatch.setattr(pinn, "relative_error", lambda *args: record() or 1.0)
    before = jax.config.jax_default_matmul_precision
    pinn.main(steps=1)
    assert precisions == ["highest", "highest"]
    assert jax.config.jax_default_matmul_precision == before


# Last, since convolutions are slow without the optimisations that quick_compilation
# leaves out for the rest of a module.
@pytest.mark.smoke
@pytest.mark.usefixtures("small", "quick_compilation")
def test_pinn_learns(capsys):
    error = pinn.main(steps=150)
    assert error < 0.7  # that of u = 0 is 1
    output = capsys.readouterr().out
    assert "7 layers, 7 with weights" in output
    losses = printed("residual", output)
    assert losses[-1] < losses[0] / 1.5
    assert printed("step", output) == [50, 100, 150]
    assert printed("relative L2 error", output)[-1] == pytest.approx(error, abs=1e-4)


def test_the_benchmark_records_each_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        minimal_examples, "EXAMPLES", {"example": lambda seed: 2 * seed}
    )
    out = tmp_path / "minimal.json"
    minimal_examples.main(minimal_examples.Options(seeds=3, out=out))
    assert json.loads(out.read_text())["results"] == {"example": [0, 2, 4]}
