"""optax's own tests of optimizers, run on optimizers behind StableGrad.

They ship in its wheel and look an optimizer up by its name in `optax._src.alias`, where
`sgd` and `adam` are replaced by chains with StableGrad in front. All updates must be
finite on top: to NumPy's comparisons NaN equals NaN.

The modules are private and move. What is not found here skips and says so; the gate is
test_optax_contract.py.
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import itertools
import json
import os
import subprocess
import sys
import traceback
import unittest
import warnings
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
import pytest

import stablegrad_optax as sg

MODULES = {
    "ContribTest": "optax.contrib._common_test",
    "AliasTest": "optax._src.alias_test",
    "ShardingTest": "optax._src.sharding_test",
    "Float64Test": "optax._src.float64_test",
}

# Where upstream's tests look optimizers up.
ALIASES = "optax._src.alias"

# --- What is run, in the way of upstream's parameterized.product ---


def product(cases, **choices):
    names = list(choices)
    return [
        case | dict(zip(names, values, strict=True))
        for case in cases
        for values in itertools.product(*choices.values())
    ]


# The rates are so small since steps behind StableGrad do not shrink with the gradient.
ALIAS = [
    {"opt_name": "sgd", "opt_kwargs": {"learning_rate": 1e-3, "momentum": 0.9}},
    {"opt_name": "adam", "opt_kwargs": {"learning_rate": 1e-2}},
]
SHARDED = [
    {"optimizer": "sgd", "optimizer_kwargs": {"learning_rate": 1e-3}},
    # float16 takes Adam's own epsilon for zero, and Adam makes NaN of a zero gradient.
    {"optimizer": "adam", "optimizer_kwargs": {"learning_rate": 1e-2, "eps": 1e-4}},
]
WRAPPERS = {"schedule_free": {"learning_rate": 1e-3}, "reduce_on_plateau": {}}
ALONE = [case | {"wrapper_name": None, "wrapper_kwargs": None} for case in ALIAS]
WRAPPED = [
    {
        "opt_name": "sgd",
        "opt_kwargs": {"learning_rate": 1e-3},
        "wrapper_name": name,
        "wrapper_kwargs": kwargs,
    }
    for name, kwargs in WRAPPERS.items()
]
CONTRIB = ALONE + WRAPPED
VECTORS = ["_setup_parabola", "_setup_rosenbrock"]
MATRICES = ["_setup_matrix_parabola", "_setup_mixed_tensor_target"]
HALF = ["float16", "bfloat16"]

CASES = {
    "ContribTest.test_optimizers_accept_extra_args": product(CONTRIB, wrap=[True]),
    "ContribTest.test_optimizers": product(
        CONTRIB, target=VECTORS + MATRICES, dtype=["float32"]
    ),
    "ContribTest.test_optimizers_can_be_wrapped_in_inject_hyperparams": CONTRIB,
    # The next three are those of AliasTest again, which has the optimizers alone.
    "ContribTest.test_preserve_dtype": product(WRAPPED, dtype=["bfloat16", "float32"]),
    "ContribTest.test_gradient_accumulation": product(
        WRAPPED, dtype=["bfloat16", "float32"]
    ),
    "ContribTest.test_state_shape_dtype_shard_stability": product(
        ALONE, dtype=["float32", "float64"]
    ),
    "ContribTest.test_optimizers_accept_learning_rate_schedule"
    "_if_type_annotated_as_such": ALONE,
    "AliasTest.test_optimization": product(
        ALIAS, target=VECTORS, dtype=["float32", "complex64"]
    ),
    "AliasTest.test_optimizers_accept_extra_args": ALIAS,
    "AliasTest.test_optimizers_can_be_wrapped_in_inject_hyperparams": ALIAS,
    "AliasTest.test_explicit_dtype": product(
        [{}],
        params_dtype=["bfloat16", "float32", "complex64", None],
        state_dtype=["bfloat16", "float32", "complex64", None],
        opt_name=["sgd_mom", "adam"],
    ),
    "AliasTest.test_preserve_dtype": product(ALIAS, dtype=["bfloat16", "float32"]),
    "AliasTest.test_state_shape_dtype_shard_stability": product(
        ALIAS,
        dtype=[*HALF, "float32", "complex64", "float64", "complex128"],
    ),
    "AliasTest.test_gradient_accumulation": product(
        ALIAS, dtype=["bfloat16", "float32"]
    ),
    "ShardingTest.test_init_with_abstract_input": SHARDED,
    "ShardingTest.test_state_sharding_type_init_match_update": SHARDED,
    "ShardingTest.test_state_sharding_type_preserved_with_jit": SHARDED,
    "Float64Test.test_mixed_dtype_input_outputs": [
        {"transform_constr": case["opt_name"], "transform_kwargs": case["opt_kwargs"]}
        for case in ALIAS
    ],
}

NOT_APPLICABLE = {
    "ShardingTest.test_microbatch_with_explicit_sharding": "has no optimizer in it",
    "ContribTest, wrapped in mechanize": "learns a step size from gradients that "
    "shrink towards the minimum, and does not settle where they are rescaled",
    "LBFGSTest": "tests L-BFGS and its line search, which take a true gradient",
}

AT_LEAST = 100  # of the cases apply to these versions
TRIED = ["0.2.5", "0.2.6", "0.2.7", "0.2.8"]


@dataclasses.dataclass(frozen=True)
class Case:
    test: str
    parameters: dict[str, Any]

    @property
    def name(self):
        """Such as AliasTest.test_optimization-adam-parabola-float32."""
        parts = [
            str(value).removeprefix("_setup_")
            for parameter, value in self.parameters.items()
            if not parameter.endswith("kwargs") and not parameter.startswith("wrap")
        ]
        return "-".join([self.test, *parts, *filter(None, [self.wrapper])])

    @property
    def wrapper(self):
        return self.parameters.get("wrapper_name")

    @property
    def options(self):
        """Those of StableGrad: vectors are no weights unless one says so.

        A vector beside a matrix takes its gain, which has no bound by itself: in 30,000
        steps around the minimum the matrix's gradient can come to be zero but for
        rounding while the vector's is not.
        """
        if self.parameters.get("target") == "_setup_mixed_tensor_target":
            return {"max_gain": 1e3}
        has_matrices = self.parameters.get("target") in MATRICES or any(
            part in self.test for part in ("inject_hyperparams", "Sharding")
        )
        return {} if has_matrices else {"is_weight": lambda path, leaf: True}

    @property
    def is_double(self):
        wide = self.parameters.get("dtype") in ("float64", "complex128")
        return wide or self.test.startswith("Float64Test")


ALL = [
    Case(test, parameters) for test, choices in CASES.items() for parameters in choices
]


# --- How it is run ---


class UnavailableError(Exception):
    """Upstream is not what these tables were written for."""


def attribute(module, name):
    """What upstream has under a name; a module may change things as it is imported."""
    # alias_test wants it for a comparison of L-BFGS only.
    is_absent = sys.modules.setdefault("sklearn", stub := mock.MagicMock()) is stub
    try:
        with mock.patch.dict(os.environ), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnavailableError(f"{module} has moved: {error}") from error
    finally:
        if is_absent:
            del sys.modules["sklearn"]


def upstream(name):
    return attribute(MODULES[name], name)


@functools.cache
def methods(name):
    """Its tests by name, without what runs each for all of upstream's parameters."""
    found = [getattr(upstream(name), attribute) for attribute in dir(upstream(name))]
    tests = [inspect.unwrap(f) for f in found if inspect.isfunction(f)]
    return {f.__name__: f for f in tests if f.__name__.startswith("test")}


def find(case):
    """The test and its parameters, by the names that this upstream gives them."""
    name, method = case.test.split(".")
    if method not in methods(name):
        raise UnavailableError(f"{MODULES[name]} has no {case.test} any more")
    test = methods(name)[method]
    signature = inspect.signature(test).parameters
    wanted = list(signature)[1:]
    given = {k: v for k, v in case.parameters.items() if k in wanted}
    unknown = {
        k
        for k in wanted
        if k not in given and signature[k].default is inspect.Parameter.empty
    }
    if unknown:
        raise UnavailableError(f"{case.test} now also asks for {', '.join(unknown)}")
    return test, given


def resolve(case, parameter, value):
    """The object that upstream passes for what the tables have as a name."""
    if parameter == "target":
        return attribute(MODULES[case.test.split(".")[0]], value)
    if parameter == "optimizer":
        return attribute(ALIASES, value)(**case.parameters["optimizer_kwargs"])
    if parameter == "transform_constr":
        return attribute(ALIASES, value)
    return getattr(jnp, value) if parameter == "dtype" else value


@contextlib.contextmanager
def behind_stablegrad(options, *, watch):
    """Replaces optax's sgd and adam, and sees that they are used and stay finite."""
    built, finite = [], []

    def watched(tx):
        def update(updates, state, params=None, **extra_args):
            updates, state = tx.update(updates, state, params, **extra_args)
            leaves = [jnp.isfinite(u).all() for u in jax.tree.leaves(updates)]
            jax.debug.callback(
                lambda x: finite.append(bool(x)), jnp.stack(leaves).all()
            )
            return updates, state

        return optax.GradientTransformationExtraArgs(tx.init, update)

    def replacement(factory):
        @functools.wraps(factory)  # upstream reads the signature
        def build(*args, **kwargs):
            tx = optax.chain(sg.stablegrad(**options), factory(*args, **kwargs))
            built.append(tx)
            return watched(tx) if watch else tx

        return build

    names = ["sgd", "adam"]
    replacements = {name: replacement(attribute(ALIASES, name)) for name in names}
    with mock.patch.multiple(ALIASES, **replacements):
        yield
    jax.effects_barrier()
    assert built
    assert all(finite)


def readable_version():
    """Upstream compares JAX's versions as strings, where 0.10 is older than 0.7."""
    version = jax.__version__ if jax.__version_info__ < (0, 10) else "0.9"
    return mock.patch.object(jax, "__version__", version)


def run(case, stablegrad=True):
    test, given = find(case)
    # compiled: which of the variants of its tests an older upstream is to run
    attributes = {"variant": staticmethod(jax.jit)}
    instance = type("Case", (upstream(case.test.split(".")[0]),), attributes)()
    # Parameters that reach the minimum never met a NaN, so those need no watching,
    # which would be slow over their thousands of steps.
    replaced = behind_stablegrad(case.options, watch="target" not in given)
    with replaced if stablegrad else contextlib.nullcontext(), readable_version():
        test(instance, **{k: resolve(case, k, v) for k, v in given.items()})


def outcome(case):
    """Empty if it passed; else why it was skipped, or how it failed."""
    try:
        run(case)
    except (UnavailableError, unittest.SkipTest) as error:
        return {"skipped": str(error)}
    except AssertionError:
        return {"failed": traceback.format_exc()}
    except Exception as error:
        failure = traceback.format_exc()
        try:
            run(case, stablegrad=False)
        except Exception:
            return {"skipped": f"fails without StableGrad as well: {error!r}"}
        return {"failed": failure}
    return {}


@pytest.mark.parametrize(
    "case", [case for case in ALL if not case.is_double], ids=lambda case: case.name
)
def test_single_precision(case):
    result = outcome(case)
    if "skipped" in result:
        pytest.skip(result["skipped"])
    assert "failed" not in result, result["failed"]


def test_double_precision():
    """This file as a script: x64 holds for a whole process."""
    result = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    outcomes = json.loads(result.stdout.splitlines()[-1])
    assert outcomes
    for name, outcome in outcomes.items():
        assert "failed" not in outcome, f"{name}\n{outcome['failed']}"
    skipped = [f"{k}: {v['skipped']}" for k, v in outcomes.items() if v]
    if skipped:
        pytest.skip("; ".join(skipped))


@pytest.mark.parametrize("case", NOT_APPLICABLE)
def test_not_applicable(case):
    pytest.skip(NOT_APPLICABLE[case])


@pytest.mark.parametrize("name", MODULES)
def test_every_upstream_case_is_listed(name):
    try:
        of_class = {f"{name}.{method}" for method in methods(name)}
    except UnavailableError as error:
        pytest.skip(str(error))
    unlisted = of_class - CASES.keys() - NOT_APPLICABLE.keys()
    if unlisted:
        pytest.skip(f"new upstream: {', '.join(sorted(unlisted))}")


def test_enough_of_it_applies(capsys):
    def applies(case):
        try:
            return bool(find(case))
        except UnavailableError:
            return False

    count = sum(map(applies, ALL))
    line = f"{count} of {len(ALL)} upstream cases apply to optax {optax.__version__}"
    with capsys.disabled():
        print(f"\n{line}")
    if count < AT_LEAST and optax.__version__ not in TRIED:
        pytest.skip(f"only {line}")
    assert count >= AT_LEAST


if __name__ == "__main__":
    double = [case for case in ALL if case.is_double]
    print(json.dumps({case.name: outcome(case) for case in double}))
