"""The network of docs/remove_batchnorm.md: what it has, and its initial weights."""

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import remove_batchnorm as benchmark
from examples.remove_batchnorm import after, before


def test_nothing_is_left_of_batchnorm():
    def kernels(network):
        return [x.shape for x in jax.tree.leaves(nnx.state(network)) if x.ndim > 1]

    old, new = (
        nnx.eval_shape(lambda module=module: module.ResNet(2, 4, nnx.Rngs(0)))
        for module in (before, after)
    )
    assert nnx.state(old, nnx.BatchStat)
    assert not nnx.state(new, nnx.BatchStat)
    assert kernels(old) == kernels(new)


def test_all_branches_together_are_as_large_as_one_shortcut():
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 64))
    blocks = [after.Block(64, 4, nnx.Rngs(i)) for i in range(4)]
    # Away from the border, where convolutions see zeros.
    branches = [
        block.conv2(nnx.relu(block.conv1(x)))[:, 2:-2, 2:-2] for block in blocks
    ]
    total = sum(np.mean(branch**2) for branch in branches)
    assert float(total) == pytest.approx(float(np.mean(x**2)), rel=0.2)


def test_the_benchmark_has_the_weights_of_before_and_of_after():
    old, deleted, new = (
        np.std([block.conv2.kernel[...] for block in make(2, 32, nnx.Rngs(0)).blocks])
        for make in (before.ResNet, benchmark.deleted, after.ResNet)
    )
    assert deleted == pytest.approx(old, rel=0.05)
    assert new < 0.8 * deleted
