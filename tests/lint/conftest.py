"""Lint runs of tests keep their key in a folder of the tests' own."""

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
