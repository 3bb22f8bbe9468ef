"""A file that changes is linted again, as in a process of its own."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fxdp.lint import linting, watching
from fxdp.lint.cli import main


def test_runs_after_changes(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    """Of files beside the target, in new files and settings; not without one, nor of others."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("x = 1\n")
    Path("venv").mkdir()
    changes = iter([
        lambda: None,
        lambda: Path("net.py").write_text("x = 22\n"),
        lambda: Path("notes.txt").write_text("x"),
        lambda: Path("venv/other.py").write_text("x"),
        lambda: Path("parts.py").write_text("x"),
        lambda: Path("pyproject.toml").write_text(""),
        lambda: Path("parts.py").unlink(),
    ])  # fmt: skip

    def pause() -> None:
        for change in changes:
            change()
            return
        raise KeyboardInterrupt

    def once() -> int:
        print(f"run of {os.getpid()}", len(Path("net.py").read_text()))
        sys.modules["left behind"] = sys
        return 1

    with pytest.raises(KeyboardInterrupt):
        watching.watch(once, ["net.py:Net"], pause)
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["6", "7", "7", "7", "7"]
    assert len({line.split()[2] for line in lines} | {str(os.getpid())}) == 6
    assert "left behind" not in sys.modules


def test_the_command(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    """It goes on after a failure, and says at once what can never work."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("raise ValueError('yet')\n")
    assert main(["--watch", "net.py", "--select", "FXD9"]) == 2
    capfd.readouterr()
    looks = []

    def pause() -> None:
        looks.append(1)
        if len(looks) > 2:
            raise KeyboardInterrupt
        Path("net.py").write_text(f"raise ValueError('then {len(looks)}')\n")

    monkeypatch.setattr(watching.watch, "__defaults__", (pause,))
    assert main(["--watch", "net.py", "--no-cache"]) == 130
    err = capfd.readouterr().err
    assert [f"ValueError: {word}" in err for word in ("yet", "then 1", "then 2")] == [True] * 3
    assert linting
