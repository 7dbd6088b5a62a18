"""ResNets and EfficientNetV2: published sizes, norms, stochastic depth, initial scale.

Whole models are only traced: to compile one takes longer than all of this.
"""

from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.image_classification.config import Config, ModelName
from examples.image_classification.models import efficientnet, layers, resnet

KEY = jax.random.key(0)
CODES = {nnx.relu: 2.0, nnx.silu: 3.0, nnx.sigmoid: 4.0}
SIZES = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "efficientnetv2-b0": 7_139_704,
    "efficientnetv2-s": 21_458_488,
}

pytestmark = pytest.mark.usefixtures("coded")


@pytest.fixture
def coded(monkeypatch):
    """Initial weights are a number that says which activation they are meant for.

    They are quick to trace, too.
    """

    def initializer(activation):
        code = CODES.get(activation, 1.0)
        return lambda key, shape, dtype: jnp.full(shape, code, dtype)

    monkeypatch.setattr(layers, "variance_preserving", initializer)
    layers.gain_of.cache_clear()
    yield
    layers.gain_of.cache_clear()


class OneKey:
    """In place of nnx.Rngs where values do not matter: quicker to trace."""

    def params(self):
        return KEY


def build(model, classes=1000, small_images=False, **options):
    config = Config(out=Path(), model=model, **options)
    family = resnet if model in resnet.MODELS else efficientnet
    return family.build(config, OneKey(), classes, 3, small_images)


def leaves(tree):
    found = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(tree))
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in found}


def traced(*args, **options):
    """Parameters and running statistics by path; fails if there is anything else."""
    model = nnx.eval_shape(lambda: build(*args, **options))
    _, parameters, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    return leaves(parameters), leaves(statistics)


@pytest.mark.parametrize("model", get_args(ModelName))
def test_published_sizes_and_nothing_else_changes_without_norms(model):
    with_norms, statistics = traced(model, norm="batch")
    assert sum(leaf.size for leaf in with_norms.values()) == SIZES[model]
    without, nothing = traced(model)
    assert not nothing
    assert {leaf.dtype for leaf in without.values()} == {jnp.dtype(jnp.float32)}
    assert without == {k: x for k, x in with_norms.items() if "/norm/" not in k}
    convolutions = [path for path in without if "/conv/" in path]
    assert len(statistics) == 2 * len(convolutions)
    assert all(path.endswith("/kernel") for path in convolutions)


@pytest.mark.parametrize(
    ("model", "size", "heights"),
    [
        ("resnet18", 224, [56, 28, 14, 7]),
        ("resnet50", 8, [8, 4, 2, 1]),
        ("efficientnetv2-b0", 32, [32, 16, 8, 4, 2]),
    ],
)
def test_heights_and_logits(monkeypatch, model, size, heights):
    """What stem and stages hand on, and logits in float32 of layers in bfloat16."""
    found = []
    call = layers.Block.__call__

    def spy(self, x, **options):
        y = call(self, x, **options)
        found.extend([x.shape[1], y.shape[1]])
        return y

    def logits():
        options = {"width_multiplier": 1 / 16, "dtype": "bfloat16"}
        network = build(model, 7, size <= 32, **options)
        return network(jnp.zeros((2, size, size, 3)), train=True, key=KEY)

    monkeypatch.setattr(layers.Block, "__call__", spy)
    out = jax.eval_shape(logits)
    assert (out.shape, out.dtype) == ((2, 7), jnp.float32)
    assert list(dict.fromkeys(found)) == heights


@pytest.mark.parametrize(
    ("model", "given", "used"),
    [
        ("efficientnetv2-b0", None, 0.2),
        ("efficientnetv2-b0", 0.0, 0.0),
        ("resnet18", None, 0.0),
        ("resnet18", 0.5, 0.5),
    ],
)
def test_drop_rates_rise_linearly(model, given, used):
    blocks = nnx.eval_shape(lambda: build(model, stochastic_depth=given)).blocks
    rates = [block.drop.rate for block in blocks]
    assert rates == pytest.approx([i * used / len(rates) for i in range(len(rates))])


class Constant(nnx.Module):
    """A branch of ones."""

    def __call__(self, x, *, train):
        del train
        return jnp.ones_like(x)


def test_branches_are_dropped_by_sample_in_training_only():
    rate, n = 0.25, 4096
    block = layers.Block([Constant()], rate)
    x = jnp.zeros((n, 2, 2, 3))
    out = np.asarray(block(x, train=True, key=KEY)).reshape(n, -1)
    assert (out == out[:, :1]).all()
    kept = out[:, 0] != 0
    np.testing.assert_allclose(out[kept], 1 / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_array_equal(block(x, train=False, key=None), x + 1)


def code(layer):
    layer = layer.conv if isinstance(layer, layers.ConvNorm) else layer
    return float(layer.kernel[...].ravel()[0])


@pytest.mark.parametrize(
    ("model", "branches"), [("resnet50", 16), ("efficientnetv2-b0", 16)]
)
def test_gain_is_that_of_the_activation_behind(model, branches):
    """Ends of residual branches add up to one shortcut, if they are to."""
    network = build(model, width_multiplier=1 / 16, initialization="depth-scaled")
    assert code(network.classifier) == 1
    for layer in [*network.stem, *network.head]:
        assert code(layer) == CODES[layer.activation]
    assert sum(block.residual for block in network.blocks) == branches
    for block in network.blocks:
        if block.shortcut is not None:
            assert code(block.shortcut) == 1
        *before, end = block.branch
        gated = False
        for layer in before:
            if isinstance(layer, layers.SqueezeExcitation):
                gated = True
                assert (code(layer.squeeze), code(layer.excite)) == (3, 1)
            else:
                assert code(layer) == CODES[layer.activation]
        gain = 4 if gated else CODES.get(end.activation, 1)
        scale = branches**-0.5 if block.residual else 1
        assert code(end) == pytest.approx(gain * scale)
