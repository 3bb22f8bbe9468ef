"""fxdp-lint as someone meets it who has never used it."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from fxdp.graph.study import GradientSums
from fxdp.lint import linting, proving
from fxdp.lint.cli import main
from tests.releases import since

columns = since((2, 12), "a line of a model comes without its columns")

NET = """
import torch
from torch import nn, Tensor

print("a file that talks")

class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc(x).relu()

class Good(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(Block(), Block()), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))

class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(x)

class Sized(nn.Module):
    def __init__(self, classes, bias=True):
        super().__init__()
        self.fc = nn.Linear(8, classes, bias)

    def forward(self, x):
        return self.fc(x)

class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        raise ValueError("no such thing")

class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(9, 8)

    def forward(self, x):
        return self.fc(x)

def make() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))

def hinge(out, y):
    return (1 - out[:, 0] * y).relu().mean()

class Unbuildable(nn.Module):
    def __init__(self):
        raise RuntimeError("never")

    def forward(self, x):
        return x

class ReadsItsNumbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, int(torch.linspace(2, 4, 3)[1].item()))

    def forward(self, x):
        return self.fc(x)

class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 1)

    def forward(self, x, y=None):
        return (self.fc(x)[:, 0] - y).square().mean()

class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(x).mean(0)

instance = Good()
number = 3
"""
X = ("--input", "f32[N,8]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("models")
    (path / "net.py").write_text(NET)
    (path / "broken.py").write_text("from torch import nn\nclass A(nn.Module)\n    pass\n")
    (path / "lacking.py").write_text("from torch import nn\nimport nothing_here\n")
    (path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (path / "empty.py").write_text("x = 1\n")
    (path / "notes.txt").write_text("x = 1\n")
    return path


@pytest.fixture
def lint(folder: Path, capsys: Any, monkeypatch: Any) -> Any:
    """Run the command in the folder; its status, stdout and stderr."""
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main([*arguments, "--no-cache"])
        return status, *capsys.readouterr()

    return run


KNOWN: dict[tuple[str, tuple[str, ...]], Any] = {}


@pytest.fixture
def once(monkeypatch: Any) -> None:
    """A model is proven once: for tests of what is done with a verdict."""
    real = linting.examined

    def examined(built: Any, wanted: Any) -> Any:
        key = built.target, wanted.inputs
        if key not in KNOWN:
            KNOWN[key] = real(built, wanted)
        return KNOWN[key]

    monkeypatch.setattr(linting, "examined", examined)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere.py"], "nowhere.py: no such file"),
        (["sub/nowhere"], "sub/nowhere: no such file or directory"),
        (["nowhere"], "nowhere: no such file; of a module name the model too: nowhere:Model"),
        (["nowhere:Net"], "nowhere:Net: no such file or module: nowhere"),
        (["notes.txt"], "notes.txt: not a Python file, a .pt2 program or a directory"),
        (["broken.py"], "broken.py: the file does not import: SyntaxError: expected ':' at "
                        "broken.py:2"),
        (["lacking.py"], "lacking.py: the file does not import: ModuleNotFoundError: No module "
                         "named 'nothing_here' at lacking.py:2"),
        (["exits.py"], "exits.py: the file exits when it is imported (code 3)"),
        (["empty.py"], "empty.py: it defines no nn.Module that can be linted"),
        (["net.py:Nope"], "net.py:Nope: there is no 'Nope' in it"),
        (["net.py:number"], "net.py:number: it is a int, and no nn.Module, class or factory"),
        (["net.py:Sized"], "net.py:Sized: it needs arguments (classes); type: fxdp-lint "
                             "net.py:Sized --kwargs classes=10 --input 'f32[N,8]'"),
        (["net.py:Unbuildable"], "net.py:Unbuildable: it cannot be built: RuntimeError: never at "
                                 "net.py:63"),
        (["net.py:Good"], "net.py:Good: its inputs are not known (x); type: fxdp-lint net.py:Good "
                          "--input 'f32[N,8]'"),
        (["net.py:Good", "--input", "f33[N]"], "net.py:Good: input 'f33[N]' has an unknown dtype"),
        (["net.py:Good", *X, "--loss", "best"], "net.py:Good: --loss 'best' is unknown"),
        (["net.py:Wrong", *X], "net.py:Wrong: RuntimeError: a and b must have same reduction dim"),
        (["net.py:Sized", *X, "--args", "(3"], "--args '(3' is no Python literal"),
        (["net.py:Sized", *X, "--kwargs", "3"], "--kwargs '3' is not like width=64, depth=2"),
        (["net.py:Good", *X, "--config", "{"], "--config is no JSON"),
        (["net.py", "--select", "FXD9"], "no code is called 'FXD9'"),
        (["."], "broken.py: the file does not import"),
        ([], "nothing to lint: name a file, PATH:OBJECT or a directory; see --help"),
        (["net.py:Good", *X, "--output-file", "no/such"], "cannot write no/such: No such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_linted_is_said_on_one_line(lint: Any, arguments: list[str], text: str):
    status, _, err = lint(*arguments)
    lines = [line for line in err.splitlines() if line != "a file that talks"]
    assert status == 2
    assert lines[0].startswith(f"fxdp-lint: {text}"), err
    assert len(lines) == 1 or arguments == ["."]
    assert "Traceback" not in err


def test_the_traceback_is_shown_if_wanted(lint: Any):
    status, _, err = lint("net.py:Unbuildable", "-v")
    assert status == 2
    assert 'raise RuntimeError("never")' in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["net.py:Good", *X],
        ["net.py:Good", *X, "--loss", "mse", "--target", "f32[N,3]"],
        ["net.py:Good", *X, "--target", "i64[N]"],
        ["net.py:Good", *X, "--loss", "cross_entropy", "--eval"],
        ["net.py:Good", *X, "--loss", "net.py:hinge", "--target", "f32[N]"],
        ["net.py:instance", *X],
        ["net.py:make", "--input", "f32[4,8]"],
        ["net.py:make", "--input", "f32[N,T,8]"],
        ["net.py:Sized", *X, "--args", "(3,)", "--kwargs", "bias=False"],
        ["net.py:ReadsItsNumbers", *X],
        ["net.py:WithLoss", *X, "--input", "y=f32[N]"],
        ["net.py:TimeFirst", "--input", "f32[T=5,N,8]"],
        ["net.py:TimeFirst", "--input", "f32[5,6,8]", "--batch-dims", "{'x': 1, 'target': 0}",
         "--loss", "cross_entropy", "--target", "i64[6]"],
        ["net.py:Normed", *X, "--eval"],
        ["torch.nn:Linear", "--args", "(8, 3)", *X],
    ],
)  # fmt: skip
def test_clean(lint: Any, arguments: list[str]):
    status, out, err = lint(*arguments)
    assert (status, out) == (0, "1 model proven.\n"), err


def test_a_file_with_several_models(lint: Any):
    """Parts of others, and classes that need arguments, are left out where nobody names them."""
    status, out, err = lint("net.py", *X, "--output-format", "json")
    found = json.loads(out)["results"]
    assert status == 2
    named = {r["target"].partition(":")[2]: r["status"] for r in found}
    assert named == {
        "instance": "proven", "make": "proven", "Normed": "refused", "Raises": "refused",
        "Wrong": "failed", "Unbuildable": "failed", "ReadsItsNumbers": "proven",
        "WithLoss": "failed", "TimeFirst": "refused",
    }  # fmt: skip
    assert err.count("a file that talks") == 1
    assert "fxdp-lint: net.py:Wrong" in err
    assert "fxdp-lint: net.py:Sized: left out, as it needs arguments (classes)" in err
    assert "Block" not in err


@columns
def test_a_refusal(lint: Any):
    status, out, err = lint("net.py:Normed", *X)
    assert status == 1
    assert out.startswith("net.py:29:16: FXD101 ")
    assert out.endswith("Found 1 fault in 1 of 1 model.\n")
    assert "assumed that the loss is cross_entropy over the last axis" in out
    assert err == "a file that talks\n"
    assert lint("net.py:Normed", *X, "-q")[1].count("\n") == 1


@columns
def test_a_refusal_in_full(lint: Any):
    _, out, _ = lint("net.py:Normed", *X, "--output-format", "full")
    lines = out.splitlines()
    assert lines[0].startswith("FXD101 mixes-samples: ")
    assert lines[1:5] == [
        "  --> net.py:29:16",
        "   |",
        "29 |         return self.norm(x)",
        "   |                ^^^^^^^^^^^^",
    ]
    assert lines[6].startswith("   = help: replace ")
    assert "\x1b" not in out


def test_what_the_model_raises_is_a_finding_at_its_line(lint: Any):
    status, out, _ = lint("net.py:Raises", *X)
    assert status == 1
    assert out.startswith("net.py:45:9: FXD501 forward: ValueError: no such thing\n")


@pytest.mark.usefixtures("once")
def test_selection(lint: Any):
    assert lint("net.py:Normed", *X, "--ignore", "FXD1")[0] == 0
    assert lint("net.py:Normed", *X, "--ignore", "mixes-samples")[0] == 0
    assert lint("net.py:Normed", *X, "--select", "FXD2,FXD3")[0] == 0
    assert lint("net.py:Normed", *X, "--select", "FXD101", "--ignore", "FXD1")[0] == 1


@pytest.mark.usefixtures("once")
def test_files_may_be_let_off(lint: Any, folder: Path):
    """By patterns of the files that the faults are in; and all findings by --exit-zero."""
    net = ("net.py:Normed", *X)
    assert lint(*net, "--exit-zero")[0] == 0
    assert lint("net.py:Good", "--exit-zero")[0] == 2
    for pattern in ("net.py", "*.py", "./*.py", "!other.py", f"{folder}/net.py"):
        assert lint(*net, "--per-file-ignores", f"{pattern}:FXD1")[:2] == (0, ""), pattern
    for words in ("other.py:FXD1", "!net.py:FXD1", "net.py:FXD2,net.py:FXD3"):
        assert lint(*net, "--per-file-ignores", words)[0] == 1, words
    assert "is not like models/*.py:FXD303" in lint(*net, "--per-file-ignores", "net.py")[2]


@pytest.mark.usefixtures("once")
def test_a_terminal_gets_the_source(lint: Any, monkeypatch: Any):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    out = lint("net.py:Normed", *X)[1]
    assert "return self.norm(x)" in out
    assert "\x1b" in out


@pytest.mark.usefixtures("once")
def test_statistics(lint: Any):
    status, out, _ = lint("net.py:Normed", *X, "--statistics")
    assert (status, out) == (1, "    1  FXD101  mixes-samples\n")


def test_certificates(lint: Any, folder: Path):
    assert lint("net.py:make", *X, "--certificate", "one.json")[0] == 0
    one = json.loads((folder / "one.json").read_text())
    assert {o["name"] for o in one["obligations"]} == {f"P{i}" for i in range(1, 7)}
    lint("net.py:make", "net.py:Normed", *X, "--certificate", "list.json")
    assert json.loads((folder / "list.json").read_text()) == [one]


def test_check(lint: Any, folder: Path):
    """0 accepted, 1 not accepted, 2 trouble."""
    lint("net.py:make", *X, "--certificate", "checked.json")
    status, out, err = lint("--check", "checked.json", "net.py:make", *X)
    assert (status, out.splitlines()[0][:44]) == (0, "accepted: every value of the captured graph ")
    assert "assumed: samples were drawn" in out
    assert "a file that talks" in err
    status, out, _ = lint("--check", "checked.json", "net.py:Good", *X)
    assert status == 1
    assert out.startswith("not accepted: the graph is another: ")
    text = (folder / "checked.json").read_text()
    (folder / "edited.json").write_text(text.replace('"Partial"', '"Replicate"'))
    status, out, _ = lint("--check", "edited.json", "net.py:make", *X)
    assert (status, len(out.splitlines())) == (1, 1)
    assert "claimed Replicate, and it is made of samples" in out
    (folder / "no.json").write_text("{}")
    for arguments, said in (
        (("no.json", "net.py:make"), "is not a certificate"),
        (("nowhere.json", "net.py:make"), "cannot read"),
        (("checked.json", "net.py"), "needs one model"),
        (("checked.json", "net.py:Raises"), "no such thing"),
        (("checked.json", "net.py:Nothing"), "Nothing"),
    ):
        status, _, err = lint("--check", *arguments, *X)
        assert (status, said in err) == (2, True), err


def test_explain(lint: Any):
    status, out, _ = lint("--explain", "FXD303")
    assert status == 0
    assert out.startswith("FXD303 keeps-samples\n")
    assert "# fxdp: allow[FXD303] reason" in out
    assert lint("--explain", "keeps-samples")[1] == out
    assert "FXD501 graph-break: " in lint("--explain", "all")[1]
    assert lint("--explain", "FXD999")[0] == 2


def test_a_model_that_hangs(lint: Any, folder: Path):
    (folder / "slow.py").write_text(
        "import time\nfrom torch import nn\nclass Slow(nn.Module):\n"
        "    def __init__(self):\n        time.sleep(60)\n    def forward(self, x):\n        ...\n"
    )
    status, _, err = lint("slow.py", "--timeout", "0.2", *X)
    assert (status, err) == (2, "fxdp-lint: slow.py: it took longer than 0.2 s\n")
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_interrupted(lint: Any, monkeypatch: Any):
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(linting, "examined", interrupted)
    status, _, err = lint("net.py:Good", *X)
    assert (status, err.splitlines()[-1]) == (130, "fxdp-lint: interrupted")


def test_a_proof_of_no_gradient_is_none(lint: Any, monkeypatch: Any):
    real = proving.attempt

    def empty(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        found.study.put(GradientSums(()))
        return found

    monkeypatch.setattr(proving, "attempt", empty)
    status, _, err = lint("net.py:Good", *X)
    assert status == 2
    assert "no parameter gets a gradient" in err


def test_a_directory(lint: Any, folder: Path):
    inner = folder / "package"
    inner.mkdir()
    (inner / "__init__.py").write_text("")
    (inner / "parts.py").write_text("WIDTH = 8\n")
    (inner / "data.py").write_text("raise AssertionError('no model is in here')\n")
    source = "from torch import nn\nfrom .parts import WIDTH\nclass Net(nn.Linear):\n    pass\n"
    source = source.replace("nn.Linear", "nn.Module").replace("    pass\n", "")
    (inner / "net.py").write_text(
        source + "    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(WIDTH, 2)\n    def forward(self, x):\n"
        "        return self.fc(x)\n"
    )
    status, out, err = lint("package", *X)
    assert (status, out, err) == (0, "1 model proven.\n", "")
    for pattern in ("net.py", "package", "pack*/net.py", f"{folder}/package/*"):
        status, _, err = lint("package", *X, "--exclude", f"other.py,{pattern}")
        assert (status, err) == (0, "fxdp-lint: nothing to lint: every file is excluded\n"), pattern
    assert lint("package/net.py", *X, "--exclude", "net.py")[1] == out
    assert lint("package:Net")[2].startswith("fxdp-lint: package:Net: a directory has no objects")


@pytest.mark.usefixtures("once")
def test_settings_of_pyproject(lint: Any, folder: Path):
    file = folder / "pyproject.toml"
    try:
        file.write_text(
            '[tool.fxdp-lint]\ntargets = ["net.py:Normed"]\nignore = ["FXD2"]\n'
            '[tool.fxdp-lint.models."net.py"]\ninput = ["f32[N,8]"]\n'
        )
        assert lint()[0] == 1
        assert lint("--ignore", "FXD1")[0] == 0
        assert lint("net.py:Good")[0] == 0
        assert "its inputs are not known" in lint("net.py:Good", "--isolated")[2]
        file.write_text("[tool.fxdp-lint]\nper-file-ignores = {'*t.py' = ['FXD101']}\n")
        assert lint("net.py:Normed", *X)[0] == 0
        file.write_text("[tool.fxdp-lint]\nexclude = ['*.py']\n")
        assert lint(".")[0] == 0
        file.write_text("[tool.fxdp-lint.per-file-ignores]\n'net.py' = 'FXD1'\n")
        assert "per-file-ignores must be lists of codes" in lint("net.py:Good")[2]
        file.write_text("[tool.fxdp-lint]\nignored = []\n")
        status, _, err = lint("net.py:Good")
        assert status == 2
        assert "[tool.fxdp-lint] has an unknown key 'ignored'" in err
        file.write_text('[tool.fxdp-lint]\nignore = "FXD1"\n')
        assert "ignore must be a list of strings" in lint("net.py:Good")[2]
        for style in ("page", ["text"]):
            file.write_text(f"[tool.fxdp-lint]\noutput-format = {json.dumps(style)}\n")
            status, _, err = lint("net.py:Good")
            assert status == 2
            assert "output-format" in err
    finally:
        file.unlink()


def test_usage(capsys: Any):
    for arguments, status in ((["--help"], 0), (["--version"], 0), (["--nonsense"], 2)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == status
    out, err = capsys.readouterr()
    assert "IMPORTS AND RUNS" in out
    assert "Traceback" not in err
