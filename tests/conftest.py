"""Settings that hold for every test: the devices, and hypothesis profiles."""

import gc
import os

import hypothesis
import jax
import pytest
from hypothesis.internal.conjecture import providers
from jax.experimental.compilation_cache import compilation_cache

# Traced functions are many objects that live long: at Python's own thresholds a tenth
# of the time goes to looking through them.
gc.set_threshold(200_000, 20, 100)

hypothesis.settings.register_profile(
    "ci", max_examples=25, deadline=None, derandomize=True
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


def pytest_addoption(parser):
    parser.addoption(
        "--platform",
        choices=("cpu", "gpu", "tpu"),
        default="cpu",
        help="where to run tests/device; every other test is for eight CPU devices",
    )


def pytest_configure(config):
    _choose_platform(config.getoption("--platform"))
    config.addinivalue_line("markers", "program: of the examples and benchmarks")
    config.addinivalue_line("markers", "smoke: runs a program from end to end, quickly")


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
