"""The comparison of derivatives: every method gives those of double precision."""

import json

import jax
import numpy as np
import pytest

from benchmarks.pinn_derivatives import __main__ as program
from benchmarks.pinn_derivatives import measure, methods

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE = {"depth": 3, "width": 8, "points": 10}


@pytest.fixture(autouse=True)
def other_tests_keep_their_caches(monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


@pytest.fixture(scope="module")
def inputs():
    params, points = methods.inputs(*SIZE.values())
    # Biases start at zero, which would hide a method that ignores them.
    keys = iter(jax.random.split(jax.random.key(1), 6))
    params = jax.tree.map(
        lambda x: x + 0.02 * jax.random.normal(next(keys), x.shape), params
    )
    return params, points


@pytest.fixture(scope="module")
def exact(inputs):
    return measure.in_double_precision(methods.nested_jvp, *inputs)


@pytest.mark.parametrize("name", methods.METHODS)
def test_laplacian_is_that_of_double_precision(name, inputs, exact):
    try:
        laplacian = jax.jit(methods.METHODS[name])(*inputs)
    except ImportError as error:
        pytest.skip(str(error))
    assert laplacian.dtype == np.float32
    assert measure.relative_error(laplacian, exact) < program.TOLERANCE


def test_exact_laplacian_is_that_of_differences(inputs, exact):
    """In double precision, so the reference does not rest on JAX's derivatives."""
    params, points = jax.tree.map(lambda x: np.asarray(x, np.float64), inputs)

    def u(x):
        (kernel, bias), *rest = methods.layers(params)
        x = (np.sqrt(3) * x) @ kernel + bias
        for kernel, bias in rest:
            x = np.tanh(x) @ kernel + bias
        return x[:, 0]

    h = 1e-3
    differences = sum(
        (u(points + h * e) - 2 * u(points) + u(points - h * e)) / h**2
        for e in np.eye(2)
    )
    np.testing.assert_allclose(exact, differences, atol=1e-4 * np.abs(exact).max())


def test_record_and_figure(tmp_path):
    """Ours, one method and the training program, from the options to the files."""
    out = tmp_path / "record.json"
    options = program.Options(
        **SIZE,
        rounds=2,
        methods=("nested jvp, scanned",),
        compile_depths=(1,),
        compile_rounds=1,
        out=out,
    )
    assert program.main(options) == 0
    record = json.loads(out.read_text())
    assert list(record["methods"]) == ["ours", "nested jvp, scanned"]
    for method in record["methods"].values():
        assert len(method["seconds"]) == 2
        assert min(method["seconds"]) > 0 < method["compile_seconds"]
        assert method["error"] < program.TOLERANCE
    assert list(record["training_compile_seconds"]) == ["1"]
    assert out.with_suffix(".png").stat().st_size > 0


def test_wrong_derivatives_end_with_exit_code_1(monkeypatch, capsys):
    def without_gradient(params, points):
        return jax.lax.stop_gradient(methods.sweep(params, points))

    def missing(params, points):
        raise ImportError("no such package")

    found = {
        "ours": methods.sweep,
        "inexact": lambda *inputs: 1.001 * methods.sweep(*inputs),
        "gradient": without_gradient,
        "nan": lambda *inputs: np.nan * methods.sweep(*inputs),
        "missing": missing,
    }
    monkeypatch.setattr(program, "METHODS", found)
    monkeypatch.setattr(program, "compile_seconds", lambda *options: {"1": [1.0]})
    assert program.main(program.Options(**SIZE, rounds=1)) == 1
    printed = capsys.readouterr()
    assert "missing is left out: no such package" in printed.out
    assert printed.err == "error: wrong derivatives: inexact, gradient, nan\n"


def test_methods_are_chosen_by_beginnings():
    options = program.Options(methods=("jinns", "folx"))
    chosen = ["ours", "folx", "jinns, fwd", "jinns, trace_hessian_x", "jinns, loop"]
    assert list(options.chosen()) == chosen
    assert list(program.Options().chosen()) == list(methods.METHODS)
    with pytest.raises(ValueError, match="no method begins with 'nothing'"):
        program.Options(methods=("nothing",)).check()
