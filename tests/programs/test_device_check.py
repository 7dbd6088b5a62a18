"""The check of a device runs on the CPU, and reports what is broken."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import device_check, overhead
from stablegrad_optax import _forms, _statistics

SMALL = {"width": 129, "depth": 2, "leaves": 4}


def without_overhead(**options):
    return device_check.Options(**SMALL, rounds=0, **options)


def test_every_check_passes_and_is_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(overhead, "resnet50_shapes", lambda: overhead.dense_shapes(4))
    fronts = {"adam alone", "stablegrad", "clip_by_block_rms"}
    few = {name: tx for name, tx in overhead.methods().items() if name in fronts}
    monkeypatch.setattr(overhead, "methods", lambda: few)
    # What other tests compiled in this process stays.
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    out = tmp_path / "device.json"
    device_check.main(device_check.Options(**SMALL, rounds=2, out=out))

    record = json.loads(out.read_text())
    assert record["device"] == jax.devices()[0].device_kind
    assert record["devices"] == jax.local_device_count() > 1
    assert record["jax"] == jax.__version__
    checks = record["checks"]
    assert len(checks) > 25
    for check in checks:
        assert check["status"] == "OK"
        assert check["error"] <= check["tolerance"]
    assert set(record["overhead"]["update_seconds"]) == fronts
    assert record["overhead"]["leaves"] == 4
    printed = capsys.readouterr().out
    assert printed.count("OK ") == len(checks)
    assert "FAILED" not in printed
    for text in ("ResNet-50", "trace and compile", f"{len(checks)} checks, 0 failed"):
        assert text in printed


def textbook_std(plan, then, values, args):
    """Squares leave the range of float32."""
    layer = plan.layer(values)
    variance = plan.reduce.mean_square(layer) - jnp.abs(plan.reduce.mean(layer)) ** 2
    return then(jnp.sqrt(variance), *args)


def raises(plan, then, values, args):
    raise NotImplementedError("not on this device")


@pytest.fixture
def fresh_traces():
    """Nothing traced before is used, and nothing traced here later."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("fresh_traces")
@pytest.mark.parametrize("broken", [textbook_std, raises])
def test_a_broken_statistic_fails(broken, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_forms, "guarded", broken)
    monkeypatch.setattr(_forms, "wide", broken)
    monkeypatch.setattr(device_check, "CHECKS", (device_check.check_scales,))
    out = tmp_path / "device.json"
    with pytest.raises(SystemExit) as exit_info:
        device_check.main(without_overhead(out=out))
    assert exit_info.value.code == 1
    assert "FAILED" in capsys.readouterr().out
    (first, *_) = json.loads(out.read_text())["checks"]
    assert first["status"] == "FAILED"
    if broken is raises:
        assert "not on this device" in first["note"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rounds": -1}, "rounds must be at least 0, got -1"),
        ({"width": 128}, "width must be at least 129, got 128"),
        ({"depth": 1}, "depth must be at least 2, got 1"),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(ValueError, match=message):
        device_check.Options(**option)


def test_large_layers_are_measured_in_one_read():
    least = device_check.Options(width=129).width
    assert device_check.SMALL**2 <= _statistics._SMALL_LAYER < least**2
