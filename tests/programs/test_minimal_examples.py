"""The single-file examples: they are short, stand alone, and learn."""

import ast
import inspect
import re

import jax
import numpy as np
import optax
import pytest

from examples import minimal_image_classifier as classifier
from examples import minimal_pinn as pinn


@pytest.fixture
def small(monkeypatch):
    """Networks with fewer layers, whose random weights compile faster."""
    monkeypatch.setattr(pinn, "DEPTH", 3)
    monkeypatch.setattr(pinn, "STEPS_PER_CALL", 50)
    monkeypatch.setattr(classifier, "WIDTH", 8)
    monkeypatch.setattr(classifier, "BLOCKS_PER_STAGE", 1)
    with jax.default_prng_impl("rbg"):
        yield


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


def momenta_of_weights(optimizer):
    leaves = jax.tree.leaves(optax.tree.get(optimizer.opt_state, "trace"))
    return [np.asarray(leaf) for leaf in leaves if leaf.ndim > 1]


@pytest.mark.smoke
def test_image_classifier_learns(small, monkeypatch, capsys):
    """And brings layers to the scale of the prediction gradient."""
    steps, train_step = [], classifier.train_step

    def record(*args):
        steps.append(args)
        return train_step(*args)

    monkeypatch.setattr(classifier, "train_step", record)
    accuracy = classifier.main(epochs=3)
    assert accuracy > 0.5  # chance is 0.1
    output = capsys.readouterr().out
    assert "8 layers, 8 with weights" in output
    losses = printed("loss", output)
    assert len(losses) == 3
    assert losses[-1] < losses[0] / 1.3
    assert printed("test accuracy", output)[-1] == pytest.approx(accuracy, abs=1e-4)

    model, optimizer, images, labels = steps[-1]
    # The gradient of the mean cross-entropy with respect to the logits.
    error = jax.nn.softmax(model(images)) - jax.nn.one_hot(labels, 10)
    reference = np.std(error) / len(labels)
    before = momenta_of_weights(optimizer)
    train_step(model, optimizer, images, labels)
    for old, new in zip(before, momenta_of_weights(optimizer), strict=True):
        np.testing.assert_allclose(np.std(new - 0.9 * old), reference, rtol=1e-3)


def test_exact_solution_of_the_pinn_solves_its_equation():
    points = np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype(np.float32)
    laplacian = pinn.laplacian(pinn.exact, points)
    np.testing.assert_allclose(laplacian, pinn.source(points), rtol=1e-4, atol=1e-4)
    _, boundary = pinn.sample_points(jax.random.key(0))
    np.testing.assert_allclose(np.abs(boundary).max(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(pinn.exact(boundary), 0, atol=1e-6)


# Last, since convolutions are slow without the optimisations that quick_compilation
# leaves out for the rest of a module.
@pytest.mark.smoke
@pytest.mark.usefixtures("small", "quick_compilation")
def test_pinn_learns(capsys):
    error = pinn.main(steps=100)
    assert error < 0.7  # that of u = 0 is 1
    output = capsys.readouterr().out
    assert "4 layers, 4 with weights" in output
    losses = printed("residual", output)
    assert losses[-1] < losses[0] / 1.5
    assert printed("step", output) == [50, 100]
    assert printed("relative L2 error", output)[-1] == pytest.approx(error, abs=1e-4)
