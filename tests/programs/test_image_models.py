"""ResNets and EfficientNetV2: published sizes, norms, stochastic depth, initial scale.

Whole models are only traced: to compile one takes longer than all of this.
"""

import dataclasses
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.image_classification import models
from examples.image_classification.config import Config, ModelName
from examples.image_classification.models import layers as layers_module
from examples.image_classification.models.layers import (
    Block,
    ConvNorm,
    Layers,
    Network,
    SqueezeExcitation,
    gain_of,
)

KEY = jax.random.key(0)
CODES = {nnx.relu: 2.0, nnx.silu: 3.0, nnx.sigmoid: 4.0}

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def coded(monkeypatch):
    """Initial weights are a number that says which activation they are meant for.

    They are quick to trace, too.
    """

    def initializer(activation):
        code = CODES.get(activation, 1.0)
        return lambda key, shape, dtype: jnp.full(shape, code, dtype)

    monkeypatch.setattr(layers_module, "variance_preserving", initializer)
    gain_of.cache_clear()
    yield
    gain_of.cache_clear()


class OneKey:
    """In place of nnx.Rngs where values do not matter: quicker to trace."""

    def params(self):
        return KEY


def layers(rngs=None, classes=4, channels=3, small=False, **options):
    config = Config(out=Path("unused"), **options)
    return Layers(config, rngs or nnx.Rngs(0), classes, channels, small)


def built(model, **options):
    """A model whose values do not matter."""
    return models.build(layers(OneKey(), model=model, **options))


def traced(model, **options):
    """A model without values."""
    return nnx.eval_shape(lambda: built(model, **options))


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def state(model):
    """Parameters and running statistics by path; fails if there is anything else."""
    _, parameters, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    return by_path(parameters), by_path(statistics)


def normal(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


# --- Sizes ---


@pytest.mark.usefixtures("coded")
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
    parameters, statistics = state(traced(name, classes=1000, norm="batch"))
    assert sum(leaf.size for leaf in parameters.values()) == count
    leaves = [*parameters.values(), *statistics.values()]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    assert name in get_args(ModelName)


@pytest.mark.usefixtures("coded")
@pytest.mark.parametrize(
    ("name", "size", "channels", "heights"),
    [
        ("resnet18", 224, 3, [56, 28, 14, 7]),
        ("resnet50", 8, 1, [8, 4, 2, 1]),
        ("efficientnetv2-b0", 32, 3, [32, 16, 8, 4, 2]),
    ],
)
def test_heights_and_logits(monkeypatch, name, size, channels, heights):
    """What stem and stages hand on, and logits in float32 of layers in bfloat16."""
    found = []
    call = Block.__call__

    def spy(self, x, **options):
        y = call(self, x, **options)
        found.extend([x.shape[1], y.shape[1]])
        return y

    def logits():
        options = {"width_multiplier": 1 / 16, "dtype": "bfloat16"}
        model = built(name, classes=7, channels=channels, small=size <= 32, **options)
        return model(jnp.zeros((2, size, size, channels)), train=True, key=KEY)

    monkeypatch.setattr(Block, "__call__", spy)
    out = jax.eval_shape(logits)
    assert (out.shape, out.dtype) == ((2, 7), jnp.float32)
    assert list(dict.fromkeys(found)) == heights


@pytest.mark.usefixtures("coded")
def test_bottleneck_has_its_stride_in_the_3x3():
    model = traced("resnet50")
    strides = [layer.conv.strides for layer in model.blocks[3].branch]
    assert strides == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.usefixtures("coded")
def test_width_multiplier():
    model = traced("resnet50", width_multiplier=0.25)
    widths = [block.branch[0].conv.out_features for block in model.blocks]
    assert widths == [16] * 3 + [32] * 4 + [64] * 6 + [128] * 3
    assert model.classifier.in_features == 4 * 128
    for channels, multiplier, width in (
        (24, 1.0, 24),
        (48, 0.4, 16),  # 19.2
        (64, 1 / 32, 2),  # too few to be rounded to 8
        (16, 1e-3, 1),
    ):
        assert layers(width_multiplier=multiplier).width(channels) == width


# --- Norms ---


@pytest.mark.usefixtures("coded")
@pytest.mark.parametrize("name", ["resnet50", "efficientnetv2-b0"])
def test_without_norms_nothing_else_changes(name):
    with_norms, statistics = state(traced(name, norm="batch"))
    without, nothing = state(traced(name))
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
        make = layers(norm=norm)
        make.conv(2, 3, 1)
        kernels.append(make.conv(2, 3, 1).conv.kernel[...])
    np.testing.assert_array_equal(*kernels)


def test_batch_norm_in_training_and_after():
    layer = layers(norm="batch").conv(3, 4, 1)
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
    np.testing.assert_allclose(statistics["norm/mean"], running_mean, **close)
    np.testing.assert_allclose(statistics["norm/var"], running_variance, **close)

    expected = (raw - running_mean) / np.sqrt(running_variance + 1e-5)
    np.testing.assert_allclose(apply(layer, x, train=False), expected, **close)
    _, after = state(layer)
    jax.tree.map(np.testing.assert_array_equal, after, statistics)


def test_batch_norm_of_bfloat16_computes_in_float32():
    make = dataclasses.replace(layers(norm="batch", dtype="bfloat16"), epsilon=0.0)
    layer = make.conv(1, 1, 1)
    layer.conv.kernel[...] = jnp.ones((1, 1, 1, 1))
    layer.norm.mean[...] = jnp.array([1.001])  # bfloat16 rounds this to 1
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
    return Block([Constant()], residual=True, drop_rate=rate)


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
    with pytest.raises(ValueError, match="rngs"):
        block(0.5)(jnp.zeros((1, 1, 1, 1)), train=True, key=None)


def test_each_block_drops_samples_of_its_own():
    network = Network(layers(), [], [block(0.5), block(0.5)], [], features=1)
    network.classifier = lambda x: x
    counts = network(jnp.zeros((64, 1, 1, 1)), train=True, key=KEY)
    # Each adds 0 or 2: if both dropped the same samples there would be no 2.
    assert set(np.unique(counts)) == {0, 2, 4}


def test_rates_rise_linearly():
    rates = layers(stochastic_depth=0.2).drop_rates(4, published=0.7)
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15])


@pytest.mark.usefixtures("coded")
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
    blocks = traced(name, stochastic_depth=given).blocks
    step = used / len(blocks)
    rates = [block.drop.rate for block in blocks]
    assert rates == pytest.approx([i * step for i in range(len(blocks))])


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
    project = layers().conv(c, c, 1, initializer=gain_of(nnx.sigmoid))
    assert second_moment(project(gated, train=True)) == pytest.approx(1, rel=0.05)


def code(layer):
    kernel = (layer.conv if isinstance(layer, ConvNorm) else layer).kernel[...]
    return float(kernel.ravel()[0])


@pytest.mark.usefixtures("coded")
@pytest.mark.parametrize("name", ["resnet50", "efficientnetv2-b0"])
def test_gain_is_that_of_the_activation_behind(name):
    model = built(name, width_multiplier=1 / 16)
    assert code(model.classifier) == 1
    for layer in [*model.stem, *model.head]:
        if isinstance(layer, ConvNorm):
            assert code(layer) == CODES[layer.activation]
    for residual in model.blocks:
        if residual.shortcut is not None:
            assert code(residual.shortcut) == 1
        gated = False
        for layer in residual.branch:
            if isinstance(layer, SqueezeExcitation):
                gated = True
                assert (code(layer.squeeze), code(layer.excite)) == (3, 1)
            elif layer.activation is None:
                assert code(layer) == (4 if gated else 1)
            else:
                assert code(layer) == CODES[layer.activation]


@pytest.mark.usefixtures("coded")
@pytest.mark.parametrize(
    ("name", "branches"),
    [("resnet18", 8), ("efficientnetv2-b0", 16)],
)
def test_depth_scaled_divides_the_ends_of_residual_branches(name, branches):
    plain, _ = state(built(name, width_multiplier=1 / 16))
    model = built(name, width_multiplier=1 / 16, initialization="depth-scaled")
    scaled, _ = state(model)
    ends = {
        f"blocks/{index}/branch/{len(residual.branch) - 1}/conv/kernel"
        for index, residual in enumerate(model.blocks)
        if residual.residual
    }
    assert len(ends) == branches
    for path, values in scaled.items():
        factor = branches**-0.5 if path in ends else 1.0
        np.testing.assert_allclose(values, factor * plain[path], rtol=1e-6)


# --- Use ---


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_training_step_is_pure(norm):
    make = layers(norm=norm)
    stem = make.conv(4, 4, 1, activation=nnx.silu)
    branch = Block([make.conv(4, 4, 1)], residual=True, drop_rate=0.5)
    model = Network(make, [stem], [branch], [], features=4)
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
