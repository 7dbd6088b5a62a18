"""A step of image classification: the loss, the reference, parts, averages, rates."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.image_classification.config import Config
from examples.image_classification.mesh import AXES, Layout, parse
from examples.image_classification.objective import Objective, Variables, take_apart
from examples.image_classification.step import Step
from examples.image_classification.watch import DivergedError, first_to_go

CLASSES, IMAGES = 3, 8

pytestmark = pytest.mark.usefixtures("quick_compilation")
MEAN, STD = np.float32([0.4]), np.float32([0.2])


class Linear(nnx.Module):
    """A classifier that can be worked out by hand, with an optional BatchNorm."""

    def __init__(self, rngs, norm=False):
        self.norm = nnx.BatchNorm(4, rngs=rngs) if norm else None
        self.linear = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, images, *, train, key):
        x = images.reshape(len(images), -1)
        if self.norm is not None:
            x = self.norm(x, use_running_average=not train)
        return self.linear(x)


def batch(size=IMAGES, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 2, 2, 1), np.uint8)),
        "label": jnp.asarray(rng.integers(0, CLASSES, size, np.int32)),
    }


def make(norm=False, steps_per_epoch=4, label_smoothing=0.0, **options):
    """A step and its initial state."""
    config = Config(
        **{"out": Path("unused"), "optimizer": "sgd", "scale_control": "none"} | options
    )
    model = Linear(nnx.Rngs(0), norm)
    objective = Objective(model, MEAN, STD, label_smoothing)
    step = Step(config, objective, steps_per_epoch)
    _, variables = take_apart(model)
    return step, step.init(variables, 0.1)


def logits_by_hand(variables, images):
    x = (np.asarray(images, np.float64).reshape(len(images), -1) / 255 - 0.4) / 0.2
    linear = variables.params["linear"]
    return x @ np.float64(linear["kernel"]) + np.float64(linear["bias"])


def cross_entropy_by_hand(logits, labels):
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -(labels * log_p).sum(-1)


def test_loss_is_the_mean_cross_entropy_of_normalised_images():
    step, state = make()
    images = batch()
    logits, _ = step.objective.predict(*state.variables, images, None)
    expected = logits_by_hand(state.variables, images["image"])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    labels = np.eye(CLASSES)[images["label"]]
    np.testing.assert_allclose(
        step.objective.loss(logits, images),
        cross_entropy_by_hand(expected, labels).mean(),
        rtol=1e-5,
    )


def test_smoothed_labels_and_mixup():
    """Mixup is with the image at the other end of the batch."""
    step, state = make(label_smoothing=0.3)
    images = batch()
    share = np.linspace(0, 1, IMAGES).astype(np.float32)
    mixed = images | {"mix_weight": jnp.asarray(share)}
    logits, _ = step.objective.predict(*state.variables, mixed, None)
    pixels, weight = np.float64(images["image"]), share[:, None, None, None]
    between = (1 - weight) * pixels + weight * pixels[::-1]
    expected = logits_by_hand(state.variables, between)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    labels = np.eye(CLASSES)[images["label"]]
    labels = (1 - share[:, None]) * labels + share[:, None] * labels[::-1]
    labels = 0.7 * labels + 0.3 / CLASSES
    np.testing.assert_allclose(
        step.objective.loss(logits, mixed),
        cross_entropy_by_hand(expected, labels).mean(),
        rtol=1e-4,
    )


def test_reference_is_the_scale_of_the_prediction_gradient():
    """So stablegrad-prediction gives every weight gradient that scale."""
    step, state = make(scale_control="stablegrad-prediction")
    images = batch()
    gradient, _ = step._gradient(state.variables, images, jax.random.key(0))
    logits = logits_by_hand(state.variables, images["image"])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    prediction = (p - np.eye(CLASSES)[images["label"]]) / IMAGES
    np.testing.assert_allclose(gradient.reference, prediction.std(), rtol=1e-4)

    new, _ = step(state, images, 3, 0, 0.1)
    trace = new.optimizer[1][0].trace["linear"]["kernel"]
    np.testing.assert_allclose(trace.std(), prediction.std(), rtol=1e-4)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_add_up_to_the_whole(parts):
    whole, state = make()
    split, _ = make(accumulate=parts)
    images = batch()
    expected, _ = whole._gradient(state.variables, images, jax.random.key(0))
    gradient, _ = split._gradient(state.variables, images, jax.random.key(0))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_parts_update_the_averages_of_batch_norm_one_after_the_other():
    step, state = make(norm=True, accumulate=2)
    one_part, _ = make(norm=True)
    images = batch()
    _, stats = step._gradient(state.variables, images, jax.random.key(0))
    expected = state.variables
    for part in range(2):
        half = {name: x[part::2] for name, x in images.items()}
        _, new = one_part._gradient(expected, half, jax.random.key(0))
        expected = Variables(expected.params, new)
    for a, b in zip(
        jax.tree.leaves(stats), jax.tree.leaves(expected.batch_stats), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_average_of_parameters_is_what_is_tested():
    step, state = make(ema_decay=0.9)
    new, _ = step(state, batch(), 2, 0, 0.1)
    for before, after, average in zip(
        jax.tree.leaves(state.variables.params),
        jax.tree.leaves(new.variables.params),
        jax.tree.leaves(new.average),
        strict=True,
    ):
        np.testing.assert_allclose(average, 0.9 * before + 0.1 * after, rtol=1e-5)
    images = batch() | {"weight": jnp.ones(IMAGES)}
    of_average = new._replace(variables=new.variables._replace(params=new.average))
    plain, _ = make()
    assert step.test(new, images) == plain.test(of_average, images)
    assert step.test(new, images) != plain.test(new, images)


def test_totals_are_of_the_epoch():
    step, state = make(steps_per_epoch=2)
    losses, correct = [], []
    for index in range(4):
        images = batch(seed=index)
        logits, _ = step.objective.predict(*state.variables, images, None)
        correct.append(int((logits.argmax(-1) == images["label"]).sum()))
        state, report = step(state, images, index, 0, 0.1)
        losses.append(float(report.loss))
    assert state.epoch.images == 2 * IMAGES
    assert state.epoch.correct == sum(correct[2:])
    np.testing.assert_allclose(state.epoch.loss, IMAGES * sum(losses[2:]), rtol=1e-5)


def test_padding_does_not_count_in_testing():
    step, state = make()
    images = batch()
    weight = jnp.ones(IMAGES).at[5:].set(0)
    padded = step.test(state, images | {"weight": weight})
    first = {name: x[:5] for name, x in images.items()}
    alone = step.test(state, first | {"weight": jnp.ones(5)})
    for a, b in zip(padded, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_rate_rises_linearly_then_falls_to_zero():
    step, _ = make(steps_per_epoch=4, epochs=5, warmup_epochs=1)
    shape = np.array([step._shape(jnp.asarray(i)) for i in range(21)])
    np.testing.assert_allclose(shape[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    assert (np.diff(shape[4:]) < 0).all()
    np.testing.assert_allclose(shape[12], 0.5, rtol=1e-6)
    np.testing.assert_allclose(shape[20], 0, atol=1e-7)
    step, _ = make(schedule="constant", warmup_epochs=0)
    assert step._shape(jnp.asarray(0)) == step._shape(jnp.asarray(100)) == 1


def test_weights_decay_and_biases_do_not():
    options = {"optimizer": "adamw", "warmup_epochs": 0, "schedule": "constant"}
    decaying, state = make(weight_decay=0.5, **options)
    plain, _ = make(**options)
    images = batch()
    (a, _), (b, _) = (s(state, images, 1, 0, 0.1) for s in (decaying, plain))
    a, b = (x.variables.params["linear"] for x in (a, b))
    before = state.variables.params["linear"]
    np.testing.assert_allclose(
        a["kernel"] - b["kernel"], -0.1 * 0.5 * before["kernel"], rtol=1e-3, atol=1e-6
    )
    np.testing.assert_array_equal(a["bias"], b["bias"])


# --- Meshes ---


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", (8, 1)),
        ("data=8", (8, 1)),
        ("fsdp=8", (1, 8)),
        ("data=2, fsdp=4", (2, 4)),
        ("fsdp=2,data=4", (4, 2)),
    ],
)
def test_mesh_of_a_text(text, sizes):
    assert parse(text, 8) == dict(zip(AXES, sizes, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data", "must be like data=4,fsdp=2, got data"),
        ("data=0", "must be like"),
        ("model=2", "must be like"),
        ("data=2,data=4", "must be like"),
        ("data=3", "--mesh data=3 needs 3 devices, there are 8"),
        ("data=4,fsdp=4", "needs 16 devices, there are 8"),
    ],
)
def test_mesh_that_makes_no_sense(text, message):
    with pytest.raises(Exception, match=message):
        parse(text, 8)


def test_leaves_are_divided_along_their_longest_axis():
    config = Config(out=Path("unused"), mesh="data=2,fsdp=4")
    layout = Layout.of(config)
    leaves = {
        "kernel": np.zeros((3, 3, 64, 128)),
        "odd": np.zeros((1001, 64)),
        "bias": np.zeros(128),
        "prime": np.zeros((1009, 7)),
    }
    specs = {name: x.sharding.spec for name, x in layout.placed(leaves).items()}
    P = jax.sharding.PartitionSpec
    assert specs == {
        "kernel": P(None, None, None, "fsdp"),
        "odd": P(None, "fsdp"),
        "bias": P(),
        "prime": P(),
    }
    whole = Layout.of(dataclasses.replace(config, mesh="data=8"))
    assert whole.placed(leaves)["kernel"].sharding.spec == P()


@pytest.mark.parametrize("options", [{"batch_size": 100}, {"accumulate": 32}])
def test_batch_that_devices_cannot_share(options):
    with pytest.raises(Exception, match="--batch-size must be a multiple of"):
        Layout.of(Config(out=Path("unused"), **options))


# --- What went first ---


def scales(*rows):
    return [dict(zip("abc", row, strict=True)) for row in rows]


def test_first_layer_to_leave_its_range():
    calm = [(1.0, 2.0, 3.0)] * 5
    history = scales(*calm, (1.0, 50.0, 3.0), (1e3, 1e9, 1e3), (np.inf,) * 3)
    assert first_to_go(history) == (2, "b", 25.0)


def test_layer_that_is_not_finite_before_the_others():
    history = scales((1.0, 2.0, 3.0), (1.0, 2.0, np.nan))
    assert first_to_go(history) == (0, "c", np.inf)


@pytest.mark.parametrize(
    "rows", [[(1.0, 1.0, 1.0)], [(1.0, 1.0, 1.0), (np.nan, np.nan, np.nan)], []]
)
def test_no_layer_went_before_the_others(rows):
    assert first_to_go(scales(*rows)) is None


def test_error_says_what_went_first():
    history = scales((1, 1, 1), (1, 1, 1), (1, 99, 1), (np.nan,) * 3)
    error = DivergedError(3, np.nan, history, "Try less.")
    assert (error.step, error.layer, error.code) == (3, "b", 1)
    assert str(error) == (
        "the loss is nan at step 3; the gradient of b went first: its scale was 99 "
        "times its median before at step 2. Try less."
    )


def test_error_without_a_layer_that_went_first():
    error = DivergedError(7, np.inf, scales((1, 1, 1)), "Try less.")
    assert error.layer is None
    assert str(error) == (
        "the loss is inf at step 7; the gradients gave no warning. Try less."
    )
