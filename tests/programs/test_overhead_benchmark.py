"""The benchmark of the overhead writes what it measured, on the tree that it names."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[2]


def test_overhead_benchmark(tmp_path):
    out = tmp_path / "overhead.json"
    script = (
        "import benchmarks.overhead as o, pathlib;"
        "o.resnet50_shapes = lambda: o.dense_shapes(4);"
        f"o.main(o.Options(rounds=2, leaves=4, out=pathlib.Path({str(out)!r})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    record = json.loads(out.read_text())
    assert set(record["update_seconds"]) == set(record["trace_and_compile_seconds"])


def test_overhead_tree_is_a_resnet50():
    from benchmarks import overhead

    shapes = jax.tree.leaves(
        overhead.resnet50_shapes(), is_leaf=lambda x: isinstance(x, tuple)
    )
    assert len(shapes) == 161
    assert sum(int(np.prod(shape)) for shape in shapes) == 25_557_032
