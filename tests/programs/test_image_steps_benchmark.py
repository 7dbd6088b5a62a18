"""The comparison of steps with BatchNorm and without."""

import json

import numpy as np
import pytest

from benchmarks import image_steps
from examples.image_classification.models import resnet
from stablegrad_optax import __version__


@pytest.mark.usefixtures("quick_compilation")
def test_record_holds_every_step(tmp_path, monkeypatch, capsys):
    # One small program, since compiling it is what takes the time here.
    first = dict(list(image_steps.CONTROLS.items())[:1])
    monkeypatch.setattr(image_steps, "CONTROLS", first)
    monkeypatch.setitem(resnet.MODELS, "resnet18", (1, 1))
    out = tmp_path / "steps.json"
    options = image_steps.Options(
        model="resnet18", width_multiplier=0.125, batch_size=8, rounds=2, out=out
    )
    image_steps.main(options)
    record = json.loads(out.read_text())
    assert record["stablegrad_optax"] == __version__
    assert record["settings"]["batch_size"] == 8
    (numbers,) = record["methods"].values()
    assert np.shape(numbers["seconds"]) == (2,)
    assert min(numbers["seconds"]) > 0 < numbers["compile_seconds"]
    assert "over BatchNorm" in capsys.readouterr().out
