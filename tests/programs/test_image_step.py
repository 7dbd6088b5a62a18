"""A step of image classification: the loss, the reference, parts, averages, rates."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.image_classification import models
from examples.image_classification.config import Config
from examples.image_classification.mesh import mesh_of, place_of
from examples.image_classification.run import diverged
from examples.image_classification.train import Program

IMAGES = 32
P = jax.sharding.PartitionSpec

pytestmark = pytest.mark.usefixtures("quick_compilation", "tiny")


@pytest.fixture(scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.RESNETS, "resnet18", (1,))
        yield


def config(**options):
    options = {"scale_control": "none", "batch_size": IMAGES} | options
    return Config(out=Path(), model="resnet18", width_multiplier=1 / 16, **options)


def make(**options):
    """The program of a run on digits, and an initial state."""
    program = Program(config(**options))
    return program, program.start(0, 0.1)


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (IMAGES, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, IMAGES, np.int32),
    }


def gradient(program, state):
    of_batch = jax.jit(program.gradient)
    return of_batch(state.params, state.batch_stats, batch(), jax.random.key(0))[0]


def test_gradient_is_of_the_mean_cross_entropy_of_smooth_labels():
    """And the paper's reference is the scale of that of the predictions."""
    program, state = make(label_smoothing=0.3)
    found, images = gradient(program, state), batch()
    logits, _ = program.logits(state.params, state.batch_stats, images["image"])
    p = np.exp(np.float64(logits))
    p /= p.sum(-1, keepdims=True)
    labels = 0.7 * np.eye(10)[images["label"]] + 0.03
    np.testing.assert_allclose(found.loss, -(labels * np.log(p)).sum(-1).mean(), 1e-5)
    of_predictions = (p - labels) / IMAGES
    np.testing.assert_allclose(found.reference, of_predictions.std(), rtol=1e-4)
    bias = found.grads["classifier"]["bias"]
    np.testing.assert_allclose(bias, of_predictions.sum(0), rtol=1e-3, atol=1e-6)
    right = p.argmax(-1) == images["label"]
    np.testing.assert_allclose(found.accuracy, right.mean())


def test_a_step_has_the_reference_as_its_scale_and_moves_the_average():
    """And is the same of a batch in four parts."""
    options = {"scale_control": "stablegrad-prediction", "ema_decay": 0.9}
    (program, state), (in_parts, _) = make(**options), make(**options, accumulate=4)
    found, params = gradient(program, state), jax.device_get(state.params)
    parts = gradient(in_parts, state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        parts,
        found,
    )
    new, report = program.advance(state, batch(), 3, 0, 0.1)
    trace = new.optimizer[1][0].trace["classifier"]["kernel"]
    np.testing.assert_allclose(trace.std(), found.reference, rtol=1e-4)
    assert report["layer_scales"].keys() >= {"classifier", "stem/0/conv"}
    np.testing.assert_allclose(report["loss"], found.loss, rtol=1e-5)
    for before, after, average in zip(
        *map(jax.tree.leaves, (params, new.params, new.average)), strict=True
    ):
        np.testing.assert_allclose(average, 0.9 * before + 0.1 * after, 1e-4, 1e-7)
    # The average is what is tested, and padding does not count.
    images = batch() | {"weight": np.float32(np.arange(IMAGES) < 5)}
    losses, right = program.sums(new, images)
    moved = new._replace(params=new.average, average=new.params)
    assert program.sums(moved, images)[0] != losses
    logits, _ = program.logits(new.average, {}, images["image"][:5])
    assert right == (logits.argmax(-1) == images["label"][:5]).sum()


def test_rate_rises_linearly_then_falls_to_zero():
    program = Program(config(optimizer="adam", batch_size=360, epochs=5))
    tx, params = program.optimizer(1.0), jnp.ones(1)  # 3 steps in each epoch
    state, rates = tx.init(params), []
    for _ in range(16):  # Adam's steps are as large as the rate
        updates, state = tx.update(jnp.ones(1), state, params)
        rates.append(-updates[0])
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-4)
    assert (np.diff(rates[3:]) < 0).all()
    np.testing.assert_allclose([rates[9], rates[15]], [0.5, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("mesh", "sizes"),
    [("", (8, 1)), ("fsdp=8", (1, 8)), ("data=8", (8, 1)), ("data=4,fsdp=2", (4, 2))],
)
def test_leaves_are_divided_along_their_longest_axis(mesh, sizes):
    mesh = mesh_of(config(mesh=mesh))
    assert tuple(mesh.shape.values()) == sizes
    kernel = place_of(mesh, np.zeros((3, 3, 64, 128))).spec
    assert kernel == (P(None, None, None, "fsdp") if sizes[1] > 1 else P())
    for shape in ((128,), (1009, 7)):  # small, and without a common divisor
        assert place_of(mesh, np.zeros(shape)).spec == P()


@pytest.mark.parametrize(
    ("last", "why", "layer"),
    [
        ([(1, 50, 3), (1e3, 1e9, 1e3), (np.nan,) * 3], "b .* 25 times .* step 7.", "b"),
        ([(1, 2, 3), (1, 2, np.nan)], "c .* no longer finite at step 9.", "c"),
        ([(np.nan,) * 3], "the gradients gave no warning.", None),
    ],
)
def test_what_went_first_is_named(last, why, layer):
    rows = [(1, 2, 3)] * 5 + last
    scales = [dict(zip("abc", row, strict=True)) for row in rows]
    error = diverged(config(lr=0.5), 9, np.nan, scales)
    assert (error.step, error.layer, error.code) == (9, layer, 1)
    with pytest.raises(type(error), match=f"loss is nan at step 9; .*{why} Try a low"):
        raise error
