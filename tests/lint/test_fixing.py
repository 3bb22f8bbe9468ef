"""Batch norms become group norms in the files, and the model that was refused is proven."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fxdp.diagnostics.codes import CODES
from fxdp.lint import cli, fixing
from fxdp.lint.cli import main
from fxdp.lint.result import Finding, Result
from fxdp.lint.rewriting import rewritten

HEAD = "import torch\nfrom torch import nn\n"
NET = (
    HEAD
    + '''

class Block(nn.Module):
    """Two layers."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)  # as it was
        self.norm = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(Block(24), nn.BatchNorm2d(24))
        self.head = nn.Linear(24, 2)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Other(nn.Module):
    def __init__(self, n):
        self.norm = nn.BatchNorm2d(n)
'''
)
X = ("--input", "f32[N,3,8,8]", "--isolated", "--no-cache")


@pytest.fixture
def net(tmp_path: Path, monkeypatch: Any) -> Path:
    """A file in the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("net.py").write_text(NET)
    return Path("net.py")


def test_a_fix_is_shown_and_written(net: Path, capsys: Any) -> None:
    assert main(["net.py:Net", *X, "--diff"]) == 1
    out, err = capsys.readouterr()
    assert "-        self.norm = nn.BatchNorm2d(width, eps=1e-3)\n" in out
    assert "+        self.norm = group_norm(width, eps=1e-3)\n" in out
    assert "nn.Sequential(Block(24), nn.GroupNorm(12, 24))" in out
    assert err == "fxdp-lint: would fix 2 norms in 1 file; --fix --unsafe-fixes writes that\n"
    assert main(["net.py:Net", *X, "--fix"]) == 1
    assert net.read_text() == NET
    assert "not fixed: 2 norms in net.py; --unsafe-fixes" in capsys.readouterr().err
    os.chmod(net, 0o640)
    assert main(["net.py:Net", *X, "--fix", "--unsafe-fixes"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("1 model proven.\n", "fxdp-lint: fixed 2 norms in net.py\n")
    assert net.stat().st_mode & 0o777 == 0o640
    assert "# as it was" in net.read_text()
    assert "self.norm = nn.BatchNorm2d(n)" in net.read_text()  # nobody linted that one
    assert [f.name for f in Path().iterdir() if f.suffix != ".py"] == []
    assert main(["net.py:Net", *X, "--diff"]) == 0
    assert "nothing to fix" in capsys.readouterr().err


def test_a_file_that_changed_meanwhile(net: Path, monkeypatch: Any, capsys: Any) -> None:
    real = fixing.edits

    def slow(results: Any) -> Any:
        found = real(results)
        net.write_text(NET + "# a word\n")
        return found

    monkeypatch.setattr(fixing, "edits", slow)
    assert main(["net.py:Net", *X, "--fix", "--unsafe-fixes"]) == 2
    assert net.read_text() == NET + "# a word\n"
    assert "net.py changed meanwhile: nothing was written to it" in capsys.readouterr().err


def test_a_file_elsewhere_is_left_alone(net: Path, capsys: Any) -> None:
    """Also one that is only linked from here, or an installed one."""
    away = Path("../away.py")
    net.rename(away)
    net.symlink_to(away)
    Path("site-packages").mkdir()
    Path("site-packages/net2.py").write_text(NET)
    for target in ("net.py:Net", "../away.py:Net", "site-packages/net2.py:Net"):
        assert main([target, *X, "--fix", "--unsafe-fixes"]) == 1
        assert "fixed" not in capsys.readouterr().err
    assert away.read_text() == Path("site-packages/net2.py").read_text() == NET


def test_a_saved_program_names_no_file_to_write(net: Path, capsys: Any) -> None:
    """Whatever its modules are, and where its traces point."""
    names: dict[str, Any] = {"__name__": "net"}
    exec(compile(net.read_text(), str(net.resolve()), "exec"), names)
    mixes = Finding(
        "net.py", 14, 1, 2, CODES["mixes-samples"], "op: why", "", ("body.0.norm",), (), (), "", ""
    )
    for target, files in (("net.py:Net", {net.resolve()}), ("p.pt2", set[Path]())):
        result = Result(target, "net.py", 1, "refused", (mixes,), model=names["Net"]())
        assert set(fixing.faulty([result])) == files


def test_a_write_that_fails(net: Path, monkeypatch: Any) -> None:
    edit = fixing.Edit(net.resolve(), net.read_bytes(), b"x = 1\n", 1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(fixing.Trouble, match=r"cannot write net\.py: No space left"):
        edit.write(since=2.0**40)
    assert net.read_text() == NET
    assert list(Path().iterdir()) == [net]


def test_what_a_diff_shows_is_printed(net: Path) -> None:
    edit = fixing.Edit(net.resolve(), b"a = 1  # \x1b[31m\n", b"b = 1\r\n", 1)
    assert edit.diff() == "--- a/net.py\n+++ b/net.py\n@@ -1 +1 @@\n-a = 1  # \\x1b[31m\n+b = 1\n"


def test_without_libcst(net: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert main(["net.py", "--fix"]) == 2
    line = "fxdp-lint: --fix and --diff need libcst: pip install 'fxdp[fix]'\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("nn.BatchNorm2d(64)", "nn.GroupNorm(32, 64)"),
        ("nn.BatchNorm1d(num_features=33, momentum=0.9)", "nn.GroupNorm(11, 33)"),
        ("nn.BatchNorm3d(n, 1e-3, 0.1, False)", "group_norm(n, eps=1e-3, affine=False)"),
        ("torch.nn.SyncBatchNorm(64)", "torch.nn.GroupNorm(32, 64)"),
        ("torch.nn.modules.batchnorm.BatchNorm2d(3)", "torch.nn.modules.batchnorm.BatchNorm2d(3)"),
        ("nn.BatchNorm2d(*n)", "nn.BatchNorm2d(*n)"),
        ("nn.SyncBatchNorm(8, process_group=n)", "nn.SyncBatchNorm(8, process_group=n)"),
        ("isinstance(n, nn.BatchNorm2d)", "isinstance(n, nn.BatchNorm2d)"),
        ("dict(norm_layer=nn.BatchNorm2d)", "dict(norm_layer=group_norm)"),
        ("dict(kind=nn.BatchNorm2d)", "dict(kind=nn.BatchNorm2d)"),
        ("nn.InstanceNorm1d(8, track_running_stats=True)", "nn.InstanceNorm1d(8)"),
        ("nn.InstanceNorm1d(8, track_running_stats=n)",
         "nn.InstanceNorm1d(8, track_running_stats=n)"),
    ],
)  # fmt: skip
def test_expressions(before: str, after: str) -> None:
    text = f"{HEAD}def f(n):\n    return {before}\n"
    found = rewritten(text.encode(), frozenset())
    assert f"    return {after}\n" in found.content.decode()
    assert found.changes == (before != after)


def test_names() -> None:
    """Classes by their own names, of another library, and where the name of the helper is taken."""
    by_name = "from torch.nn import BatchNorm2d as BN\nx = BN(64)\n"
    assert rewritten(by_name.encode(), frozenset()).changes == 0
    both = rewritten(("import torch.nn as tnn\n" + by_name).encode(), frozenset())
    assert b"x = tnn.GroupNorm(32, 64)" in both.content
    other = b"import mylib as nn\nx = nn.BatchNorm2d(64)\n"
    assert rewritten(other, frozenset()).content == other
    taken = rewritten(f"{HEAD}group_norm = 3\nx = nn.BatchNorm2d(group_norm)\n".encode(),
                      frozenset()).content  # fmt: skip
    assert b"x = group_norm_of(group_norm)\n" in taken
    again = rewritten(taken + b"y = nn.BatchNorm2d(x)\n", frozenset()).content
    assert again.count(b"def ") == 2
    with pytest.raises(SyntaxError):
        rewritten(b"x = (\n", frozenset())


def test_variables_for_the_class() -> None:
    text = f"{HEAD}def f(n, norm_layer=nn.BatchNorm2d):\n    norm = norm_layer or nn.BatchNorm2d\n"
    found = rewritten(text.encode(), frozenset())
    assert found.changes == 2
    assert b"norm_layer=group_norm):\n    norm = norm_layer or group_norm\n" in found.content


def test_the_rest_stays_byte_by_byte() -> None:
    """Ends of lines, encoding, comments, odd spaces."""
    text = "# coding: latin-1\r\nfrom torch import nn  # \xe9\r\nx = [ nn.BatchNorm2d( 4 ) ,]\r\n"
    found = rewritten(text.encode("latin-1"), frozenset()).content.decode("latin-1")
    assert found == text.replace("nn.BatchNorm2d( 4 )", "nn.GroupNorm( 2, 4 )")


@pytest.mark.parametrize("channels", [1, 2, 3, 24, 32, 64, 96, 100])
def test_the_added_function_groups_as_fix_does(channels: int) -> None:
    text = rewritten(f"{HEAD}def f(n):\n    return nn.BatchNorm2d(n)\n".encode(), frozenset())
    names: dict[str, Any] = {}
    exec(text.content, names)
    from fxdp import fix

    made = names["f"](channels)
    assert repr(made) == repr(fix(torch.nn.BatchNorm2d(channels)).model)
    assert sys.modules["libcst"]
