"""The comparison of derivatives: every method gives those of double precision."""

import json

import jax
import numpy as np
import pytest

from benchmarks import (
    pinn_derivatives,
    pinn_derivatives_methods,
    pinn_derivatives_report,
)
from benchmarks.pinn_derivatives_methods import Case, UnavailableError

CASE = Case(depth=3, width=8, points=10)


@pytest.fixture(scope="module")
def exact():
    return pinn_derivatives_methods.exact_laplacian(CASE)


@pytest.mark.parametrize("name", pinn_derivatives_methods.methods())
def test_laplacian_is_that_of_double_precision(name, exact):
    method = pinn_derivatives_methods.methods()[name]
    try:
        candidate = method(CASE)
    except UnavailableError as error:
        pytest.skip(str(error))
    _, points = CASE.inputs()
    laplacian = jax.jit(candidate.laplacian)(candidate.params, points)
    assert laplacian.dtype == np.float32
    scale = np.abs(exact).max()
    np.testing.assert_allclose(laplacian, exact, rtol=0, atol=1e-5 * scale)


def test_exact_laplacian_is_that_of_differences(exact):
    """In double precision, so the reference does not rest on JAX's derivatives."""
    params, points = jax.tree.map(lambda x: np.asarray(x, np.float64), CASE.inputs())

    def u(x):
        (kernel, bias), *rest = pinn_derivatives_methods.layers(params)
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
    options = pinn_derivatives.Options(
        *(CASE.depth, CASE.width, CASE.points),
        rounds=2,
        methods=("nested jvp, scanned",),
        compile_depths=(1,),
        compile_rounds=1,
        out=out,
    )
    assert pinn_derivatives.main(options) == 0
    record = json.loads(out.read_text())
    assert list(record["methods"]) == ["ours", "nested jvp, scanned"]
    for method in record["methods"].values():
        assert len(method["seconds"]) == 2
        assert min(method["seconds"]) > 0 < method["compile_seconds"]
        assert method["error"] < pinn_derivatives.TOLERANCE
    assert list(record["training_compile_seconds"]) == ["1"]
    assert out.with_suffix(".png").stat().st_size > 0


def test_a_wrong_gradient_is_found():
    right = {"error": 1e-7, "gradient_norm": 1.0}
    found = {
        "a": right,
        "b": right,
        "off": {"error": 1e-3, "gradient_norm": 1.0},
        "gradient": {"error": 1e-7, "gradient_norm": 1.1},
        "nan": {"error": float("nan"), "gradient_norm": 1.0},
        "missing": {"unavailable": "not installed"},
    }
    assert pinn_derivatives.wrong(found) == ["off", "gradient", "nan"]


def test_ratios_are_within_a_round():
    found = {
        "ours": {"seconds": [1.0, 2.0, 4.0]},
        "other": {"seconds": [3.0, 6.0, 12.0]},
        "missing": {"unavailable": "not installed"},
    }
    ratios = pinn_derivatives_report.ratios(found)
    np.testing.assert_allclose(ratios["other"], 3.0)
    assert "missing" not in ratios


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="no method begins with 'nothing'"):
        pinn_derivatives.chosen(("nothing",))
