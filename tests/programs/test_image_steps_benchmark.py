"""The comparison of steps with BatchNorm and without."""

import json

import numpy as np
import pytest

from benchmarks import image_steps
from stablegrad_optax import __version__

FOUND = {
    "BatchNorm": {"compile_seconds": 1.0, "seconds": [2.0, 4.0, 30.0]},
    "nothing": {"compile_seconds": 1.0, "seconds": [1.0, 2.0, 3.0]},
}


def test_ratio_is_of_medians():
    assert image_steps.ratio(FOUND, "nothing", "BatchNorm") == 0.5
    assert image_steps.ratio(FOUND, "BatchNorm", "nothing") == 2.0


def test_table_has_a_line_for_each_method():
    table = image_steps.table(FOUND, batch_size=128)
    assert list(table.columns[0].cells) == ["BatchNorm", "nothing"]
    assert list(table.columns[1].cells) == ["32", "64"]
    assert list(table.columns[2].cells) == ["1.00", "0.50"]


@pytest.mark.usefixtures("quick_compilation")
def test_record_holds_every_step(tmp_path, monkeypatch):
    without = dict(list(image_steps.CONTROLS.items())[:2])
    monkeypatch.setattr(image_steps, "CONTROLS", without)
    out = tmp_path / "steps.json"
    options = image_steps.Options(
        model="resnet18", width_multiplier=0.125, batch_size=8, rounds=2, out=out
    )
    image_steps.main(options)
    record = json.loads(out.read_text())
    assert record["stablegrad_optax"] == __version__
    assert record["settings"]["batch_size"] == 8
    for numbers in record["methods"].values():
        assert np.shape(numbers["seconds"]) == (2,)
        assert min(numbers["seconds"]) > 0
