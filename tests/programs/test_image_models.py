"""ResNets and EfficientNetV2: published sizes, norms, stochastic depth, initial scale.

Whole models are only traced: to compile one takes longer than all of this.
"""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.common.runs import RunError
from examples.image_classification import models
from examples.image_classification.models import initialization
from examples.image_classification.models.layers import ConvNorm, Layers, scaled_width
from examples.image_classification.models.network import (
    Block,
    Network,
    drop_rates,
    drop_samples,
)
from examples.image_classification.models.normalization import Identity, norm_factory

NAMES = get_args(models.ModelName)
KEY = jax.random.key(0)


class OneKey:
    """In place of nnx.Rngs where values do not matter: quicker to trace."""

    def params(self):
        return KEY


def traced(name, images=None, train=False, **options):
    """A model without values, or the logits that it would have for images."""
    options = {"num_classes": 10, "rngs": OneKey()} | options

    def build():
        model = models.build(name, **options)
        return model if images is None else model(images, train=train, key=KEY)

    return nnx.eval_shape(build)


def state(model):
    """Parameters and running statistics by path; fails if there is anything else."""
    _, parameters, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)

    def by_path(tree):
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                nnx.to_pure_dict(tree)
            )
        }

    return by_path(parameters), by_path(statistics)


def layers(norm="none", dtype=jnp.float32, seed=0):
    factory = norm_factory(norm, momentum=0.9, epsilon=1e-5, dtype=dtype)
    return Layers(norm=factory, dtype=dtype, rngs=nnx.Rngs(seed))


def normal(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


# --- Sizes ---


@pytest.mark.parametrize(
    ("name", "count"),
    {
        "resnet18": 11_689_512,
        "resnet34": 21_797_672,
        "resnet50": 25_557_032,
        "resnet101": 44_549_160,
        "efficientnetv2-b0": 7_139_704,
        "efficientnetv2-s": 21_458_488,
    }.items(),
)
def test_published_numbers_of_parameters(name, count):
    parameters, statistics = state(traced(name, num_classes=1000))
    assert sum(leaf.size for leaf in parameters.values()) == count
    leaves = [*parameters.values(), *statistics.values()]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_tiny_images(name):
    images = jnp.zeros((2, 8, 8, 1))
    tiny = {"in_channels": 1, "width_multiplier": 1 / 16}
    logits = traced(name, images, norm="none", dtype=jnp.bfloat16, **tiny)
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)


def test_logits_of_colour_images():
    images = jnp.zeros((3, 32, 32, 3))
    logits = traced("resnet18", images, train=True, num_classes=7, small_images=True)
    assert (logits.shape, logits.dtype) == ((3, 7), jnp.float32)


def sizes(name, size, **options):
    """Height of what the stem and each stage hand on, the images being this high."""

    def heights():
        model = models.build(
            name, num_classes=10, norm="none", rngs=OneKey(), **options
        )
        x = jnp.zeros((1, size, size, 3))
        for layer in model.stem:
            x = layer(x, train=False)
        found = [x.shape[1]]
        for block in model.blocks:
            x = block(x, train=False, key=None)
            found.append(x.shape[1])
        return list(dict.fromkeys(found))

    found = []
    jax.eval_shape(lambda: found.extend(heights()))
    return found


def test_spatial_sizes():
    assert sizes("resnet18", 224) == [56, 28, 14, 7]
    assert sizes("resnet50", 32, small_images=True) == [32, 16, 8, 4]
    assert sizes("efficientnetv2-b0", 224) == [112, 56, 28, 14, 7]
    assert sizes("efficientnetv2-b0", 32, small_images=True) == [32, 16, 8, 4, 2]


def test_bottleneck_has_its_stride_in_the_3x3():
    model = traced("resnet50", norm="none")
    strides = [layer.conv.strides for layer in model.blocks[3].branch]
    assert strides == [(1, 1), (2, 2), (1, 1)]


def test_width_multiplier():
    model = traced("resnet50", width_multiplier=0.25, norm="none")
    widths = [block.branch[0].conv.out_features for block in model.blocks]
    assert widths == [16] * 3 + [32] * 4 + [64] * 6 + [128] * 3
    assert model.classifier.in_features == 4 * 128
    assert [scaled_width(w, 1.0) for w in (24, 112, 1280)] == [24, 112, 1280]
    assert scaled_width(48, 0.4) == 16  # 19.2
    assert scaled_width(64, 1 / 32) == 2  # too few to be rounded to 8
    assert scaled_width(16, 1e-3) == 1


# --- Norms ---


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnetv2-b0"])
def test_without_norms_nothing_else_changes(name):
    with_norms, statistics = state(traced(name))
    without, nothing = state(traced(name, norm="none"))
    assert not nothing
    assert statistics.keys() == {
        path.replace("scale", "mean").replace("bias", "var")
        for path in with_norms.keys() - without.keys()
    }
    assert without == {
        path: leaf for path, leaf in with_norms.items() if "/norm/" not in path
    }
    convolutions = {path for path in without if "/conv/" in path}
    assert all(path.endswith("/kernel") for path in convolutions)
    assert len(statistics) == 2 * len(convolutions)
    assert "classifier/bias" in without


def test_a_seed_gives_the_same_convolutions_with_norms_and_without():
    kernels = []
    for norm in ("batch", "none"):
        make = layers(norm)
        make.conv(2, 3, 1)
        kernels.append(make.conv(2, 3, 1).conv.kernel[...])
    np.testing.assert_array_equal(*kernels)


def test_batch_norm_in_training_and_after():
    layer = layers("batch").conv(3, 4, 1)
    x = 2 * normal(5, 6, 6, 3) + 1
    raw = np.asarray(layer.conv(x), np.float64)
    mean, variance = raw.mean((0, 1, 2)), raw.var((0, 1, 2))

    apply = nnx.jit(ConvNorm.__call__, static_argnames="train")
    out = np.asarray(apply(layer, x, train=True))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.var((0, 1, 2)), 1, atol=1e-3)
    _, statistics = state(layer)
    running_mean, running_variance = 0.1 * mean, 0.9 + 0.1 * variance
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(statistics["norm/batch/mean"], running_mean, **close)
    np.testing.assert_allclose(statistics["norm/batch/var"], running_variance, **close)

    expected = (raw - running_mean) / np.sqrt(running_variance + 1e-5)
    np.testing.assert_allclose(apply(layer, x, train=False), expected, **close)
    _, after = state(layer)
    jax.tree.map(np.testing.assert_array_equal, after, statistics)


def test_batch_norm_of_bfloat16_computes_in_float32():
    norm = norm_factory("batch", momentum=0.9, epsilon=0.0, dtype=jnp.bfloat16)
    layer = norm(1, rngs=nnx.Rngs(0))
    layer.batch.mean[...] = jnp.array([1.001])  # bfloat16 rounds this to 1
    out = layer(jnp.ones((1, 1, 1, 1), jnp.bfloat16), train=False)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), -0.001, rtol=0.01)


# --- Stochastic depth ---


class Constant(nnx.Module):
    """A branch of ones."""

    def __call__(self, x, *, train):
        del train
        return jnp.ones_like(x)


def block(rate):
    return Block([Constant()], shortcut=Identity(), drop_rate=rate)


@pytest.mark.parametrize(("train", "rate"), [(True, 0.0), (False, 0.0), (False, 0.7)])
def test_no_branch_is_dropped_at_rate_zero_or_after_training(train, rate):
    x = normal(4, 2, 2, 3)
    np.testing.assert_array_equal(block(rate)(x, train=train, key=None), x + 1)


def test_branches_are_dropped_by_sample():
    rate, n = 0.25, 4096
    x = jnp.zeros((n, 2, 2, 3), jnp.bfloat16)
    out = block(rate)(x, train=True, key=KEY)
    assert out.dtype == x.dtype
    out = np.asarray(out, np.float32).reshape(n, -1)
    assert (out == out[:, :1]).all()
    kept = out[:, 0] != 0
    np.testing.assert_allclose(out[kept], 1 / (1 - rate), rtol=0.01)
    deviation = np.sqrt(rate * (1 - rate) / n)
    assert abs(kept.mean() - (1 - rate)) < 4 * deviation


def test_stochastic_depth_needs_a_key():
    with pytest.raises(ValueError, match="key"):
        block(0.5)(jnp.zeros((1, 1, 1, 1)), train=True, key=None)


def network(num_blocks, rate):
    return Network(
        stem=[],
        blocks=[block(rate) for _ in range(num_blocks)],
        classifier=lambda x: x,
        dtype=jnp.float32,
    )


def test_each_block_drops_samples_of_its_own():
    rate, n = 0.5, 64
    counts = network(2, rate)(jnp.zeros((n, 1, 1, 1)), train=True, key=KEY)
    masks = [
        drop_samples(jnp.ones((n, 1)), rate, jax.random.fold_in(KEY, index))
        for index in range(2)
    ]
    assert (masks[0] != masks[1]).any()
    np.testing.assert_array_equal(counts, masks[0] + masks[1])


def test_rates_rise_linearly():
    assert drop_rates(0.2, 4) == pytest.approx([0, 0.05, 0.1, 0.15])


@pytest.mark.parametrize(
    ("name", "given", "used"),
    [
        ("efficientnetv2-b0", None, 0.2),
        ("efficientnetv2-b0", 0.0, 0.0),
        ("resnet18", None, 0.0),
        ("resnet18", 0.5, 0.5),
    ],
)
def test_rates_of_models(name, given, used):
    blocks = traced(name, norm="none", stochastic_depth=given).blocks
    assert [block.drop_rate for block in blocks] == drop_rates(used, len(blocks))


# --- Initialisation ---


def second_moment(x):
    return float(jnp.mean(jnp.square(x)))


def test_a_plain_chain_keeps_second_moments():
    make = layers()
    x = normal(64, 1, 1, 512)
    for _ in range(8):
        x = make.conv(512, 512, 1, activation=nnx.relu)(x, train=True)
    x = make.conv(512, 512, 1)(x, train=True)
    assert second_moment(x) == pytest.approx(1, rel=0.2)


def test_fan_in_of_a_depthwise_convolution_is_its_window():
    kernel = layers().conv(4096, 4096, 3, depthwise=True).conv.kernel[...]
    assert kernel.shape == (3, 3, 1, 4096)
    assert 9 * second_moment(kernel) == pytest.approx(1, rel=0.05)


def test_gate_is_made_up_for():
    """Whatever the gate's input, so long as it is about N(0, 1)."""
    c = 512  # channels
    gated = normal(c, 1, 1, c) * nnx.sigmoid(normal(c, 1, 1, c, seed=2))
    project = layers().conv(c, c, 1, initializer=initialization.gain_of(nnx.sigmoid))
    assert second_moment(project(gated, train=True)) == pytest.approx(1, rel=0.05)


CODES = {nnx.relu: 2.0, nnx.silu: 3.0, nnx.sigmoid: 4.0}


@pytest.fixture
def coded(monkeypatch):
    """Initial weights are a number that says which activation they are meant for."""

    def initializer(activation):
        code = CODES.get(activation, 1.0)
        return lambda key, shape, dtype: np.full(shape, code, dtype)

    monkeypatch.setattr(initialization, "variance_preserving", initializer)
    initialization.gain_of.cache_clear()
    yield
    initialization.gain_of.cache_clear()


def code(layer):
    kernel = (layer.conv if isinstance(layer, ConvNorm) else layer).kernel[...]
    return float(kernel.flat[0])


def built(name, **options):
    return models.build(
        name, num_classes=2, width_multiplier=1 / 16, rngs=OneKey(), **options
    )


@pytest.mark.usefixtures("coded")
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnetv2-b0"])
def test_gain_is_that_of_the_activation_behind(name):
    model = built(name)
    assert code(model.classifier) == 1
    for layer in [*model.stem, *model.head]:
        if isinstance(layer, ConvNorm):
            assert code(layer) == CODES[layer.activation]
    for residual in model.blocks:
        if isinstance(residual.shortcut, ConvNorm):
            assert code(residual.shortcut) == 1
        gated = False
        for layer in residual.branch:
            if not isinstance(layer, ConvNorm):
                gated = True
                assert (code(layer.squeeze), code(layer.excite)) == (3, 1)
            elif layer.activation is None:
                assert code(layer) == (4 if gated else 1)
            else:
                assert code(layer) == CODES[layer.activation]


@pytest.mark.usefixtures("coded")
@pytest.mark.parametrize(
    ("name", "branches"),
    [("resnet18", 8), ("resnet101", 33), ("efficientnetv2-b0", 16)],
)
def test_depth_scaled_divides_the_ends_of_residual_branches(name, branches):
    plain, _ = state(built(name))
    model = built(name, initialization="depth-scaled")
    scaled, statistics = state(model)
    ends = {
        f"blocks/{index}/branch/{len(residual.branch) - 1}/conv/kernel"
        for index, residual in enumerate(model.blocks)
        if residual.shortcut is not None
    }
    assert len(ends) == branches
    for path, values in scaled.items():
        factor = branches**-0.5 if path in ends else 1.0
        np.testing.assert_allclose(values, factor * plain[path], rtol=1e-6)
    assert statistics.keys() == state(built(name))[1].keys()


# --- Use ---


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_training_step_is_pure(norm):
    make = layers(norm)
    model = Network(
        stem=[make.conv(4, 4, 1, activation=nnx.silu)],
        blocks=[Block([make.conv(4, 4, 1)], shortcut=Identity(), drop_rate=0.5)],
        classifier=make.linear(4, 4),
        dtype=jnp.float32,
    )
    graphdef, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)

    def loss(params, statistics, images):
        model = nnx.merge(graphdef, params, statistics, copy=True)
        logits = model(images, train=True, key=KEY)
        return jnp.sum(logits**2), nnx.state(model, nnx.BatchStat)

    before = jax.tree.map(np.array, (params, statistics))
    images = normal(8, 4, 4, 4)
    gradient, updated = jax.jit(jax.grad(loss, has_aux=True))(
        params, statistics, images
    )
    jax.tree.map(np.testing.assert_array_equal, before, (params, statistics))
    assert jax.tree.structure(updated) == jax.tree.structure(statistics)
    for new, old in zip(
        jax.tree.leaves(updated), jax.tree.leaves(statistics), strict=True
    ):
        assert (new != old).any()
    for leaf in jax.tree.leaves(gradient):
        assert jnp.isfinite(leaf).all()
        assert (leaf != 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet19"}, "model must be one of resnet18, .*, got 'resnet19'"),
        ({"norm": "layer"}, "norm must be one of batch, none, got 'layer'"),
        ({"initialization": "zeros"}, "initialization must be one of .*, got 'zeros'"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"width_multiplier": 0.0}, "width_multiplier must be positive, got 0.0"),
        ({"width_multiplier": float("nan")}, "width_multiplier must be positive"),
        ({"stochastic_depth": 1.0}, r"stochastic_depth must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    options = {"name": "resnet18", "num_classes": 10, "rngs": OneKey()} | options
    with pytest.raises(RunError, match=message) as error:
        models.build(**options)
    assert "\n" not in str(error.value)
