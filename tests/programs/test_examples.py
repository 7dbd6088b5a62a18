"""Each example makes its first steps, and says what is wrong with bad options."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablegrad_optax as sg
from examples.deep_poisson import model, problem, train

ROOT = Path(__file__).parents[2]
SMALL = ["--depth", "3", "--width", "8", "--seeds", "2", "--interior-points", "16"]


def run(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=cwd
    )


@pytest.mark.smoke
def test_demo_prints_a_table_and_writes_figure_and_numbers(tmp_path):
    result = run(
        "examples.deep_poisson",
        *SMALL,
        *("--seeds", "3", "--steps", "4", "--chunk", "2", "--out", str(tmp_path)),
    )
    assert result.returncode == 0, result.stderr
    for text in ("StableGrad + adam", "clip + adam", "seed 2", "steps/s", "Figure:"):
        assert text in result.stdout
    assert "…" not in result.stdout  # it fits a terminal of 80 columns
    assert (tmp_path / "deep_poisson.png").stat().st_size > 10_000
    record = json.loads((tmp_path / "deep_poisson.json").read_text())
    assert record["config"]["depth"] == 3
    for method in record["methods"].values():
        assert np.shape(method["error_history"]) == (2, 3)
        assert np.isfinite(method["relative_l2"]).all()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "0", "steps must be positive"),
        ("--depth", "1", "depth must be at least 2"),
        ("--steps", "51", "steps must be a multiple of chunk"),
        ("--out", "README.md/x", "README.md"),
    ],
)
def test_bad_options_give_one_line_and_exit_code_2(option, value, message):
    result = run("examples.deep_poisson", option, value)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_laplacian_is_the_trace_of_the_hessian():
    network = model.DeepNetwork(depth=5, width=16)
    params = network.init(jax.random.key(0), jnp.zeros((1, 2)))
    points = problem.sample_interior(jax.random.key(1), 7)
    value, laplacian = model.value_and_laplacian(params, points)

    def u(point):
        return network.apply(params, point[None])[0]

    np.testing.assert_allclose(value, jax.vmap(u)(points), rtol=1e-5, atol=1e-6)
    expected = jax.vmap(lambda p: jnp.trace(jax.hessian(u)(p)))(points)
    np.testing.assert_allclose(laplacian, expected, rtol=1e-4, atol=1e-5)


def test_exact_solution_solves_the_equation():
    points = problem.sample_interior(jax.random.key(0), 9)
    laplacian = jax.vmap(lambda p: jnp.trace(jax.hessian(problem.exact)(p)))(points)
    np.testing.assert_allclose(laplacian, problem.source(points), rtol=1e-4, atol=1e-4)
    boundary = problem.sample_boundary(jax.random.key(0), 64)
    np.testing.assert_allclose(problem.exact(boundary), 0, atol=1e-6)
    assert (jnp.abs(boundary).max(axis=1) == 1).all()
    assert len(jnp.unique(boundary[jnp.abs(boundary) == 1])) == 2


def test_every_hidden_layer_has_its_own_gain():
    network = model.DeepNetwork(depth=5, width=16)
    params = network.init(jax.random.key(0), jnp.zeros((1, 2)))
    tx = sg.stablegrad(stack_axis=model.stack_axis)
    updates, _ = tx.update(params, tx.init(params))
    scales = sg.layer_scales(updates, stack_axis=model.stack_axis)
    assert {name: scale.shape for name, scale in scales.items()} == {
        "params/first": (),
        "params/hidden/dense": (4,),
        "params/last": (),
    }
    for scale in scales.values():
        np.testing.assert_allclose(scale, np.ones(scale.shape), rtol=1e-5)


def test_a_seed_is_trained_alike_beside_others():
    """Seeds are vmapped together; what a seed gives does not depend on how many."""
    config = train.Config(
        depth=3, width=8, steps=4, chunk=2, seeds=3, interior_points=16
    )
    one = train.Config(depth=3, width=8, steps=4, chunk=2, seeds=1, interior_points=16)
    method = "StableGrad + adam"
    together = train.train(train.methods(config)[method], config)
    alone = train.train(train.methods(one)[method], one)
    np.testing.assert_allclose(together.errors[0], alone.errors[0], rtol=1e-4)


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
