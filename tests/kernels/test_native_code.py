"""Shared libraries: one for each processor, whole or not at all."""

import ctypes
from pathlib import Path

import pytest

from fxdp.kernels import native_code
from fxdp.kernels.native_code import built, machine


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a library, with an empty cache for it."""
    monkeypatch.setattr(native_code, "cache_dir", lambda: str(tmp_path / "cache"))
    path = tmp_path / "seven.c"
    path.write_text("int seven(void) { return 7; }\n")
    if built(path, machine()) is None:
        pytest.skip("no compiler")
    return path


def test_a_source_is_compiled_once(source: Path) -> None:
    path = built(source, machine())
    assert path is not None
    assert ctypes.CDLL(str(path)).seven() == 7
    made = path.stat().st_mtime_ns
    assert built(source, machine()) == path
    assert path.stat().st_mtime_ns == made


def test_another_processor_has_another_file(source: Path) -> None:
    mine, other, unknown = (built(source, name) for name in (machine(), "another", ""))
    assert mine is not None
    assert other is not None
    assert unknown is not None
    assert mine.parent == other.parent != unknown.parent
    assert mine != other


def test_macros_and_another_language(source: Path) -> None:
    path = source.with_suffix(".cpp")
    path.write_text(
        "template <class T> T same(T x) { return x; }\n"
        'extern "C" int number() { return same(NUMBER); }\n'
    )
    found = [built(path, machine(), f"NUMBER={number}") for number in (3, 4)]
    assert [ctypes.CDLL(str(one)).number() for one in found] == [3, 4]


def test_what_does_not_compile_leaves_nothing(source: Path) -> None:
    before = set((source.parent / "cache").iterdir())
    source.write_text("#error nothing to be had\n")
    assert built(source, machine()) is None
    assert set((source.parent / "cache").iterdir()) == before
