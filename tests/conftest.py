"""Fixtures for all tests."""

import gc
from pathlib import Path

import pytest
import torch
import torch._dynamo.guards

from fxdp.autotune import timings


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no GPU here")


def pytest_collection_finish() -> None:
    """What was imported is there to stay: looking for garbage in it took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    # After each compilation torch empties the processor's caches to time its guards, and looks for
    # garbage: a twentieth of the compilation of a small model.
    torch._dynamo.guards.profile_guard_manager = lambda *_: 0.0
    torch._dynamo.config.run_gc_after_compile = False


@pytest.fixture
def double():
    """Everything in float64, from a fixed seed."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def own_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's times."""
    used: set[str] = set()
    monkeypatch.setattr(timings, "store", lambda: tmp_path / "times.json")
    monkeypatch.setattr(timings, "used", lambda: used)
    timings.stored.cache_clear()
    yield tmp_path / "times.json"
    timings.stored.cache_clear()
