"""A verdict is taken from the cache only if nothing that it rests on has changed."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fxdp.lint import cache, linting
from fxdp.lint.apart import apart
from fxdp.lint.cache import Cache
from fxdp.lint.cli import main
from fxdp.lint.models.loading import beside, load_file
from fxdp.lint.result import Result
from fxdp.lint.witness import Witness, is_doubtful

NET = """
import torch
from torch import nn
from parts import WIDTH

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, WIDTH)

    def forward(self, x):
        return self.fc(x)
"""


class Runs:
    """Runs the command in a folder, and counts what was linted."""

    def __init__(self, capsys: Any) -> None:
        self.capsys, self.count = capsys, 0

    def __call__(self, *arguments: str) -> tuple[int, str, bool]:
        """The exit status, the report, and whether anything was linted."""
        before = self.count
        status = main(["--isolated", *arguments])
        return status, self.capsys.readouterr().out, self.count > before


@pytest.fixture
def run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Runs:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(linting, "WITNESS", Witness())  # other tests' modules are none of ours
    Path("parts.py").write_text("WIDTH = 3\n")
    Path("net.py").write_text(NET)
    runs, real = Runs(capsys), linting.lint

    def lint(*arguments: Any) -> Any:
        runs.count += 1
        return real(*arguments)

    monkeypatch.setattr(linting, "lint", lint)
    return runs


@pytest.fixture
def quick(run: Runs, monkeypatch: Any) -> Runs:
    """The same, where a file says itself what becomes of it, and nothing is proven."""

    def lint(target: str, *_: Any) -> Iterator[Result]:
        run.count += 1
        with apart(target, False), beside(Path.cwd()):
            module: Any = load_file(Path(target).resolve())
        yield Result(target, target, 1, module.STATUS, trouble="why" * (module.STATUS == "failed"))

    monkeypatch.setattr(linting, "lint", lint)
    Path("parts.py").write_text("STATUS = 'proven'\n")
    Path("net.py").write_text("from parts import STATUS\n")
    return run


def test_what_was_proven_or_refused_is_known(run: Runs) -> None:
    """With all that a report tells of it, also where a file imports its neighbours."""
    bad = NET.replace("self.fc(x)", "self.fc(x - x.mean())").replace("Net", "Bad")
    Path("bad.py").write_text(bad)
    time.sleep(0.05)
    arguments = ("net.py", "bad.py", "--input", "f32[N,8]")
    status, out, linted = run(*arguments)
    assert (status, linted) == (1, True)
    assert "FXD102" in out
    assert run(*arguments) == (1, out, False)
    assert run("net.py:Net", *arguments[2:])[2]  # another target
    assert run(*arguments, "--ignore", "FXD1", "--output-format", "full")[::2] == (0, False)
    assert run(*arguments, "--no-cache") == (1, out, True)
    assert run(*arguments, "--certificate", "c.json")[2]
    assert Path(".fxdp_lint_cache/.gitignore").read_text() == "*\n"
    Path("parts.py").write_text("WIDTH = 0\n")
    assert run(*arguments)[2]


def edit(run: Runs) -> None:
    Path("net.py").write_text("from parts import STATUS\n# a word\n")


def edit_an_import(run: Runs) -> None:
    Path("parts.py").write_text("STATUS = 'refused'\n")


def hide_an_import(run: Runs) -> None:
    """A package goes before a module of its name."""
    Path("parts").mkdir()
    Path("parts/__init__.py").write_text("STATUS = 'refused'\n")


def set_a_variable(run: Runs) -> None:
    os.environ["FXDP_TEST_ONLY"] = "1"


def change_fxdp(run: Runs) -> None:
    Path("own.py").write_text("")
    cache.OWN = Path.cwd()


def change_torch(run: Runs) -> None:
    cache.torch_version = lambda: "0.1"


def remove(run: Runs) -> None:
    for file in Path(".fxdp_lint_cache").glob("*.bin"):
        file.unlink()


def tamper(run: Runs) -> None:
    for file in Path(".fxdp_lint_cache").glob("*.bin"):
        data = file.read_bytes()
        file.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])


def truncate(run: Runs) -> None:
    for file in Path(".fxdp_lint_cache").glob("*.bin"):
        file.write_bytes(file.read_bytes()[:10])


def another_user(run: Runs) -> None:
    """Their key is another; so is that of whoever sends a folder of entries along."""
    Path(os.environ["XDG_CACHE_HOME"], "fxdp", "lint.key").write_bytes(b"k" * 32)


def a_key_that_others_read(run: Runs) -> None:
    os.chmod(Path(os.environ["XDG_CACHE_HOME"], "fxdp", "lint.key"), 0o644)


def a_folder_that_is_a_link(run: Runs) -> None:
    Path(".fxdp_lint_cache").rename("elsewhere")
    Path(".fxdp_lint_cache").symlink_to("elsewhere")


def another_target(run: Runs) -> None:
    """The entry of a file that is proven, under the name of one that is not."""
    Path("bad.py").write_text("STATUS = 'refused'\n")
    (proven,) = Path(".fxdp_lint_cache").glob("*.bin")
    time.sleep(0.05)
    run("bad.py")
    for file in Path(".fxdp_lint_cache").glob("*.bin"):
        file.write_bytes(proven.read_bytes())
    run.count = -1
    run("bad.py")
    assert run.count == 0
    another_user(run)


CHANGES = [edit, edit_an_import, hide_an_import, set_a_variable, change_fxdp, change_torch, remove,
           tamper, truncate, another_user, a_key_that_others_read, a_folder_that_is_a_link,
           another_target]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_linted_again(
    quick: Runs, change: Callable[[Runs], None], monkeypatch: Any
) -> None:
    monkeypatch.setenv("FXDP_TEST_ONLY", "0")
    monkeypatch.setattr(cache, "OWN", cache.OWN)
    monkeypatch.setattr(cache, "torch_version", cache.torch_version)
    time.sleep(0.05)
    assert quick("net.py")[2]
    assert not quick("net.py")[2]
    change(quick)
    assert quick("net.py")[2]


KEEPS_NOTHING = [
    "STATUS = 'failed'",
    "import os\nSTATUS = 'proven' if os.path.exists('flag') else 'refused'",
    "from pathlib import Path\nPath('made.txt').write_text('x')\nSTATUS = 'proven'",
    "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])\nSTATUS = 'proven'",
    "import random\nSTATUS = random.choice(['proven'])",
    "from torch import nn\nnn.BatchNorm2d = nn.GroupNorm\nSTATUS = 'proven'",
    "import os\nos.environ['FXDP_TEST_ONLY'] = '1'\nSTATUS = 'proven'",
    "from pathlib import Path\nPath(__file__).touch()\nSTATUS = 'proven'",
]


@pytest.mark.parametrize("text", KEEPS_NOTHING)
def test_what_depends_on_more_than_files_is_not_kept(
    quick: Runs, text: str, monkeypatch: Any
) -> None:
    from torch import nn

    monkeypatch.setattr(nn, "BatchNorm2d", nn.BatchNorm2d)
    monkeypatch.setenv("FXDP_TEST_ONLY", "0")
    Path("net.py").write_text(text + "\n")
    time.sleep(0.05)
    for _ in range(2):
        assert quick("net.py")[2]
        monkeypatch.setenv("FXDP_TEST_ONLY", "0")


def test_a_file_that_is_read_and_a_file_that_is_missed(quick: Runs) -> None:
    Path("net.py").write_text(
        "try:\n    STATUS = open('status.txt').read()\nexcept OSError:\n    STATUS = 'proven'\n"
    )
    time.sleep(0.05)
    assert quick("net.py")[::2] == (0, True)
    assert not quick("net.py")[2]
    Path("status.txt").write_text("failed")
    assert quick("net.py")[::2] == (2, True)


def test_what_a_file_replaced_holds_for_those_behind_it(quick: Runs, monkeypatch: Any) -> None:
    """Their verdicts are of a changed torch, and are not kept."""
    import torch.nn.functional as F

    monkeypatch.setattr(F, "relu", F.relu)
    Path("first.py").write_text("from torch.nn import functional as F\nF.relu = F.gelu\n"
                                "STATUS = 'proven'\n")  # fmt: skip
    time.sleep(0.05)
    assert quick("first.py", "net.py")[2]
    linting.WITNESS.tainted = False
    assert quick("net.py")[2]


def test_where_nothing_can_be_written(quick: Runs, monkeypatch: Any) -> None:
    Path(".fxdp_lint_cache").write_text("a file")
    for _ in range(2):
        assert quick("net.py")[::2] == (0, True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("net.py").resolve()))
    assert Cache.of(Path("elsewhere")) is None
    assert quick("net.py", "--cache-dir", "elsewhere")[::2] == (0, True)
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize(
    "line",
    ["import ctypes", "import os, mmap as m", "from cryptography import x509",
     "import torch; torch.from_file", "from torch import (", "__import__('x')"],
)  # fmt: skip
def test_what_no_hook_may_see_is_not_kept(line: str, tmp_path: Path) -> None:
    """Code in another language opens files unseen: what is read so may change, and nobody knows."""
    __import__("cryptography")  # which is installed, and imported by whoever names it
    file = tmp_path / "net.py"
    file.write_text(f"import math\nfrom torch import nn\n{line}\n")
    assert is_doubtful(str(file), str(file))
    file.write_text("import math\nfrom torch import nn\nfrom . import parts\n")
    assert not is_doubtful(str(file), str(file))
