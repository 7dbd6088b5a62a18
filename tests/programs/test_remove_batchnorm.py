"""The network of docs/remove_batchnorm.md, and the benchmark that trains it."""

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import remove_batchnorm as benchmark
from examples.remove_batchnorm import after, before


def test_nothing_is_left_of_batchnorm():
    networks = {m: m.ResNet(2, 4, nnx.Rngs(0)) for m in (before, after)}
    statistics = {m: len(nnx.state(n, nnx.BatchStat)) for m, n in networks.items()}
    assert statistics[before] > statistics[after] == 0
    kernels = {
        m: [x.shape for x in jax.tree.leaves(nnx.state(n, nnx.Param)) if x.ndim > 1]
        for m, n in networks.items()
    }
    assert kernels[before] == kernels[after]


def test_all_branches_together_are_as_large_as_one_shortcut():
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 64))
    blocks = [after.Block(64, 9, nnx.Rngs(i)) for i in range(9)]
    # Away from the border, where convolutions see zeros.
    branches = [
        block.conv2(nnx.relu(block.conv1(x)))[:, 2:-2, 2:-2] for block in blocks
    ]
    total = sum(np.mean(branch**2) for branch in branches)
    assert float(total) == pytest.approx(float(np.mean(x**2)), rel=0.2)


def test_the_default_weights_are_those_of_before():
    def size(network):
        return np.std([block.conv2.kernel[...] for block in network.blocks])

    old, new = before.ResNet(4, 32, nnx.Rngs(0)), benchmark.deleted(4, 32, nnx.Rngs(0))
    assert size(new) == pytest.approx(size(old), rel=0.05)
    assert size(after.ResNet(4, 32, nnx.Rngs(0))) < 0.6 * size(new)
