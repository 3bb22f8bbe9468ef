"""Every code has a file that shows it and one that does not; their comments state the findings."""

import re
from pathlib import Path
from typing import Any

import pytest

from fxdp.diagnostics.codes import CODES
from fxdp.lint.cli import main

FOLDER = Path(__file__).parent / "fixtures"
FILES = sorted(FOLDER.glob("fxd*.py"))
MARKED = re.compile(r"# (FXD\d{3})")
# What no file can show: inputs are always declared to fxdp.prove, and detached. Through
# torch.compile(backend="fxdp") both arise; tests/torch_compile/test_backend.py has them. And a rule
# without a form is the user's own; tests/refusals/test_capture.py has one.
OF_NO_FILE = {"FXD103", "FXD302", "FXD402"}


def test_every_code_has_a_bad_and_a_good_file():
    wanted = {c.code.lower() for c in CODES.values()} - {c.lower() for c in OF_NO_FILE}
    assert {f.stem for f in FILES} == {f"{c}_{kind}" for c in wanted for kind in ("bad", "good")}


@pytest.mark.parametrize("file", FILES, ids=[f.stem for f in FILES])
def test_findings(file: Path, capsys: Any, monkeypatch: Any):
    monkeypatch.chdir(FOLDER)
    lines = enumerate(file.read_text().splitlines(), 1)
    expected = [(i, m[1]) for i, line in lines for m in MARKED.finditer(line)]
    assert bool(expected) == file.stem.endswith("_bad")
    status = main([file.name, "--isolated", "--no-cache"])
    out, err = capsys.readouterr()
    assert err == ""
    told = re.findall(rf"^{file.name}:(\d+):\d+: (FXD\d+) .*$", out, re.MULTILINE)
    assert [(int(line), code) for line, code in told] == expected, out
    assert status == bool(expected)
