"""The benchmark of the overhead writes what it measured, on the tree that it names."""

import json

import jax
import numpy as np

from benchmarks import overhead


def test_overhead_benchmark(tmp_path, monkeypatch):
    # Other tests keep their caches, and the tree is small.
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(overhead, "resnet50_shapes", lambda: overhead.dense_shapes(4))
    out = tmp_path / "overhead.json"
    overhead.main(overhead.Options(rounds=2, leaves=4, out=out))
    record = json.loads(out.read_text())
    assert set(record["update_seconds"]) == set(record["trace_and_compile_seconds"])


def test_overhead_tree_is_a_resnet50():
    shapes = jax.tree.leaves(
        overhead.resnet50_shapes(), is_leaf=lambda x: isinstance(x, tuple)
    )
    assert len(shapes) == 161
    assert sum(int(np.prod(shape)) for shape in shapes) == 25_557_032
