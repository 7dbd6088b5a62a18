"""Settings that hold for every test: eight CPU devices, and hypothesis profiles."""

import os

# Before JAX is imported: sharding is tested on devices that any machine has.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis

hypothesis.settings.register_profile(
    "ci", max_examples=40, deadline=None, derandomize=True
)
hypothesis.settings.register_profile("long", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A script for a process of its own, which pytest would import in search of doctests.
collect_ignore = ["float64_checks.py"]
