"""Settings that hold for every test: the devices, and hypothesis profiles."""

import gc
import json
import os
from pathlib import Path

import hypothesis
import jax
import pytest
from hypothesis.internal.conjecture import providers
from jax.experimental.compilation_cache import compilation_cache

# Traced functions are many objects that live long: at Python's own thresholds a tenth
# of the time goes to looking through them.
gc.set_threshold(200_000, 20, 100)

hypothesis.settings.register_profile(
    "ci", max_examples=40, deadline=None, derandomize=True
)
hypothesis.settings.register_profile("long", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
# Hypothesis takes constants from the project's modules that happen to be loaded, which
# differ between workers and runs. No module counts as the project's here, so that
# `derandomize` gives the same examples in every run.
if hasattr(providers, "is_local_module_file"):
    providers.is_local_module_file = lambda path: False

# Scripts for processes of their own, which pytest would import in search of doctests.
collect_ignore = [
    "multiprocess_worker.py",
]


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Compiles each program of a module but once, and leaves JAX as it was."""
    cache = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    names = ["jax_enable_x64", "jax_default_matmul_precision", *cache]
    before = {name: getattr(jax.config, name) for name in names}

    def configure(settings):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # where it is, is looked up once

    configure(cache)
    yield
    configure(before)


# --- What the compatibility table of the docs is made of ---
#
# A test with the mark `compatible(kind, name)` shows that StableGrad works with `name`.
# `--compatibility-report FILE` writes what became of each; tests/compatibility_table.py
# makes the table of it.


def pytest_addoption(parser):
    parser.addoption(
        "--compatibility-report",
        type=Path,
        help="JSON file for the outcomes of tests marked `compatible`",
    )
    parser.addoption(
        "--platform",
        choices=("cpu", "gpu", "tpu"),
        default="cpu",
        help="where to run tests/device; every other test is for eight CPU devices",
    )


def pytest_configure(config):
    _choose_platform(config.getoption("--platform"))
    config.addinivalue_line(
        "markers",
        "compatible(kind, name): shows that StableGrad works with `name`, a wrapper, "
        "optimizer, framework or form of parallelism",
    )
    config.addinivalue_line("markers", "program: of the examples and benchmarks")
    config.addinivalue_line("markers", "smoke: runs a program from end to end, quickly")
    report = config.getoption("--compatibility-report")
    if report is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_CompatibilityReport(report))


def _choose_platform(platform):
    """Before JAX starts any backend, here and in the processes that tests start."""
    if platform == "cpu":
        # Sharding is tested on devices that any machine has.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8"
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != platform:
        raise pytest.UsageError(
            f"--platform {platform}: JAX runs on {jax.default_backend()} here"
        )


def pytest_collection_modifyitems(items):
    for item in items:
        for marker in item.iter_markers("compatible"):
            kind, name = marker.args
            # User properties reach the controlling process from xdist's workers.
            item.user_properties.append(("compatible", [kind, name]))


class _CompatibilityReport:
    """Collects outcomes, and writes them when the session ends."""

    def __init__(self, path):
        self.path = path
        self.outcomes = []

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return  # setup and teardown count only where they end the test
        for key, value in report.user_properties:
            if key == "compatible":
                kind, name = value
                outcome = {"test": report.nodeid, "outcome": report.outcome}
                self.outcomes.append({"kind": kind, "name": name} | outcome)

    def pytest_sessionfinish(self):
        self.outcomes.sort(key=lambda o: (o["kind"], o["name"], o["test"]))
        self.path.write_text(json.dumps(self.outcomes, indent=1) + "\n")
