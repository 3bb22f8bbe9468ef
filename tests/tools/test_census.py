"""The census tells what is proven from what mixes samples, and counts both."""

import pytest

from tools.census import layers
from tools.census.__main__ import summarise
from tools.census.subject import examine


def test_a_layer_is_proven_and_batch_norm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    subjects = layers.subjects()
    mixes = next(name for name in subjects if name.startswith("BatchNorm1d"))
    results = [examine(name, subjects[name], 60) for name in ("Linear", mixes)]
    assert [r.verdict for r in results] == ["proven", "batch norm"]
    summarise(results)
    assert "proven: 100.0 % of the 1 captured models" in capsys.readouterr().out
