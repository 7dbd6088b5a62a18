"""ResNets and EfficientNetV2: published sizes, norms, stochastic depth, initial scale.

Whole models are only traced: to compile one takes longer than all of this.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.image_classification import models
from examples.image_classification.config import Config

KEY = jax.random.key(0)
CODES = {nnx.identity: 1.0, nnx.relu: 2.0, nnx.silu: 3.0, nnx.sigmoid: 4.0}
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
        return lambda key, shape, dtype: jnp.full(shape, CODES[activation], dtype)

    monkeypatch.setattr(models, "gain_of", initializer)


def build(model, classes=1000, small_images=False, **options):
    config = Config(out=Path(), model=model, **options)
    rngs = type("OneKey", (), {"params": lambda self: KEY})()  # quick to trace
    return models.build(config, rngs, classes, 3, small_images)


def traced(model, **options):
    """Shapes of parameters and statistics by path; fails if there is anything else."""
    network = nnx.eval_shape(lambda: build(model, **options))
    _, *parts = nnx.split(network, nnx.Param, nnx.BatchStat)
    leaves = jax.tree_util.tree_leaves_with_path
    return [
        {
            tuple(key.key for key in path): x
            for path, x in leaves(nnx.to_pure_dict(part))
        }
        for part in parts
    ]


@pytest.mark.parametrize("model", SIZES)
def test_published_sizes_and_nothing_else_changes_without_norms(model):
    with_norms, statistics = traced(model, norm="batch")
    assert sum(leaf.size for leaf in with_norms.values()) == SIZES[model]
    without, nothing = traced(model)
    assert not nothing
    assert without == {k: x for k, x in with_norms.items() if "norm" not in k}
    convolutions = [path for path in without if "conv" in path]
    assert len(statistics) == 2 * len(convolutions)
    assert {path[-1] for path in convolutions} == {"kernel"}


@pytest.mark.parametrize(
    ("model", "size", "heights"),
    [
        ("resnet18", 224, [56, 28, 14, 7]),
        ("resnet50", 8, [8, 4, 2, 1]),
        ("efficientnetv2-b0", 32, [32, 16, 8, 4, 2]),
    ],
)
def test_heights_and_logits(monkeypatch, model, size, heights):
    """Where blocks begin and end, and logits in float32 of layers in bfloat16."""
    found, call = [], models.Block.__call__

    def spy(self, x, key):
        y = call(self, x, key)
        found.extend([x.shape[1], y.shape[1]])
        return y

    def logits():
        options = {"width_multiplier": 1 / 16, "dtype": "bfloat16"}
        network = build(model, 7, size <= 32, **options)
        return network(jnp.zeros((2, size, size, 3)), KEY)

    monkeypatch.setattr(models.Block, "__call__", spy)
    out = jax.eval_shape(logits)
    assert (out.shape, out.dtype) == ((2, 7), jnp.float32)
    assert list(dict.fromkeys(found)) == heights


@pytest.mark.parametrize(
    ("model", "published"), [("efficientnetv2-b0", 0.2), ("resnet18", 0)]
)
def test_drop_rates_rise_linearly(model, published):
    for given in (None, 0.0, 0.5):
        network = nnx.eval_shape(
            lambda given=given: build(model, stochastic_depth=given)
        )
        rates = [block.drop.rate for block in network.blocks]
        used = published if given is None else given
        assert rates == pytest.approx(np.arange(len(rates)) * used / len(rates))


class Ones(nnx.Module):
    def __call__(self, x):
        return jnp.ones_like(x)


def test_branches_are_dropped_by_sample_in_training_only():
    rate, n = 0.25, 4096
    block = models.Block([Ones()])
    block.drop.rate = rate
    x = jnp.zeros((n, 2, 2, 3))
    out = np.asarray(block(x, KEY)).reshape(n, -1)
    assert (out == out[:, :1]).all()
    kept = out[:, 0] != 0
    np.testing.assert_allclose(out[kept], 1 / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / n)
    block.eval()
    np.testing.assert_array_equal(block(x, None), x + 1)


def code(layer):
    layer = layer.conv if isinstance(layer, models.ConvNorm) else layer
    return float(layer.kernel[...].ravel()[0])


@pytest.mark.parametrize("model", ["resnet50", "efficientnetv2-b0"])
def test_gain_is_that_of_the_activation_behind(monkeypatch, model):
    """And the ends of residual branches add up to one shortcut."""
    # A block or two of each kind.
    stages = (32, (True, 1, 1, 1, 16), (True, 2, 2, 4, 32), (False, 3, 2, 4, 96))
    monkeypatch.setitem(models.EFFICIENTNETS, "efficientnetv2-b0", stages)
    monkeypatch.setitem(models.RESNETS, "resnet50", (1, 2))
    network = build(model, width_multiplier=1 / 16, initialization="depth-scaled")
    branches = sum(block.residual for block in network.blocks)
    assert branches == 3
    assert code(network.classifier) == 1
    layers = [*network.stem, *network.head]
    for block in network.blocks:
        *before, end = block.branch
        layers += [*before, *filter(None, [block.shortcut])]
        gated = any(isinstance(x, models.SqueezeExcitation) for x in before)
        gain = 4 if gated else CODES[end.activation]
        scale = branches**-0.5 if block.residual else 1
        assert code(end) == pytest.approx(gain * scale)
    for layer in layers:
        if isinstance(layer, models.SqueezeExcitation):
            assert (code(layer.squeeze), code(layer.excite)) == (3, 1)
        else:
            assert code(layer) == CODES[layer.activation]
