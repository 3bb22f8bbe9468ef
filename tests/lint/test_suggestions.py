"""Files as they are: what is missing is said with the command to type next."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from fxdp.lint.cli import main

HEAD = "from dataclasses import dataclass\nimport torch\nfrom torch import nn, Tensor\n"
TAIL = """
        self.fc = nn.Linear(8, {out})

    def forward(self, x):
        return self.fc(x)
"""
CONFIG = """
@dataclass
class Inner:
    width: int = 4

@dataclass
class NetConfig:
    classes: int
    inner: Inner
    depth: int = 2

@dataclass
class OtherConfig:
    classes: int = 3

class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(8, config.classes * config.inner.width)

    def forward(self, x):
        return self.fc(x)

class Named(nn.Module):
    def __init__(self, settings: "OtherConfig | None"):
        super().__init__()
        self.fc = nn.Linear(8, settings.classes)

    def forward(self, x):
        return self.fc(x)
"""
BLOCKS = """
class Block(nn.Module):
    def __init__(self, planes):
        super().__init__()
        self.conv = nn.Conv2d(planes, planes, 3, padding=1)

    def forward(self, x):
        return self.conv(x).relu()

class Net(nn.Module):
    def __init__(self, block, layers, num_classes=10):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), *[block(8) for _ in range(layers[0])])
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def net8():
    '''Eight layers.'''
    return Net(Block, [2, 2])

def net16(pretrained=False):
    if pretrained:
        raise AssertionError("nobody asked")
    model = Net(Block, [4, 4])
    return model

def train():
    print("nobody asked")
    return Net(Block, [1])
"""
TEXT = """
class Tagger(nn.Module):
    '''x: (B, H, W, 3), t: (B,)'''

    def __init__(self, vocab_size: int, d_model, heads, tags, dropout: float):
        super().__init__()
        self.out = nn.Linear(d_model, tags)
        self.table = nn.Embedding(vocab_size, d_model)
        self.lstm = nn.LSTM(d_model, d_model)

    def forward(self, tokens, mask=None):
        return self.out(self.lstm(self.table(tokens))[0])

class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x, t):
        '''
        Args:
            x (Tensor): the image, shape (B, H, W, 3)
        '''
        assert x.shape[1:] == (32, 32, 3)
        return self.fc(x) + t[:, None, None, None]

class Strange(nn.Module):
    def __init__(self, teacher: Denoiser):
        super().__init__()

    def forward(self, x):
        return x
"""


@pytest.fixture
def lint(tmp_path: Path, capsys: Any, monkeypatch: Any) -> Any:
    """Run the command on a file of some text; its status and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, *arguments: str) -> tuple[int, str]:
        Path("net.py").write_text(HEAD + text)
        return main(arguments), capsys.readouterr().err

    return run


def typed(err: str) -> list[str]:
    """The command at the end of a line, in words."""
    (line,) = err.splitlines()
    program, *words = shlex.split(line.rpartition("; type: ")[2])
    assert program == "fxdp-lint"
    return words


def test_a_configuration(lint: Any) -> None:
    """By annotation, or the one that is called like the model; nested ones, too."""
    X = ("--input", "f32[N,8]")
    assert lint(CONFIG, "net.py:Named", *X) == (0, "")
    status, err = lint(CONFIG, "net.py:Net", "--config", '{"inner": {"width": 2}}')
    assert status == 2
    assert "it needs arguments (classes)" in err
    assert typed(err)[:2] == ["net.py:Net", "--config"]
    assert "classes=10" in typed(err)[2]
    status, err = lint(CONFIG, "net.py:Named", *X, "--config", "clases=3")
    assert status == 2
    assert "OtherConfig has no 'clases': one of classes" in err


def test_a_configuration_that_nobody_named_is_assumed(lint: Any, capsys: Any) -> None:
    command = ["net.py:Net", "--config", '{"inner": {"width": 2}, "classes": 3}']
    status, err = lint(CONFIG, *command)
    assert status == 2
    assert typed(err) == [*command, "--input", "f32[N,8]"]
    (Path("net.py")).write_text(HEAD + CONFIG)
    assert main([*typed(err), "--output-format", "full"]) == 0
    assert "assumed that its config is a NetConfig, as no annotation says otherwise" in (
        capsys.readouterr().out
    )


def test_functions_that_only_make_a_model(lint: Any) -> None:
    """The first of them for each class; what does more is not called."""
    status, err = lint(BLOCKS, "net.py", "--input", "f32[N,3,8,8]")
    assert (status, err) == (0, "fxdp-lint: net.py:net16: left out, as net8 makes a Net, too\n")


def test_a_class_that_takes_a_class(lint: Any) -> None:
    _, err = lint(BLOCKS, "net.py:Net")
    assert typed(err) == ["net.py:Net", "--kwargs", "block=Block, layers=[2, 2, 2, 2]",
                          "--input", "f32[N,3,32,32]"]  # fmt: skip
    assert lint(BLOCKS, *typed(err)) == (0, "")
    assert lint(BLOCKS.partition("def net8")[0], "net.py", "--kwargs", "block=Block, layers=[1]",
                "--input", "f32[N,3,8,8]") == (0, "")  # fmt: skip
    _, err = lint(BLOCKS, "net.py:Net", "--kwargs", "block=Brick, layers=[1]")
    assert "--kwargs: there is no 'Brick' in the file" in err


def test_values_by_name_and_layers_by_order(lint: Any) -> None:
    """Time comes first where an LSTM says so."""
    _, err = lint(TEXT, "net.py:Tagger")
    assert typed(err) == ["net.py:Tagger", "--kwargs",
                          "vocab_size=100, d_model=64, heads=4, tags=10, dropout=0.1",
                          "--input", "i64[T=16,N]"]  # fmt: skip


def test_shapes_of_docstrings(lint: Any) -> None:
    _, err = lint(TEXT, "net.py:Denoiser", "--loss", "mse")
    assert typed(err) == ["net.py:Denoiser", "--loss", "mse", "--input", "f32[N,32,32,3]",
                          "--input", "i64[N]"]  # fmt: skip


def test_what_cannot_be_guessed(lint: Any) -> None:
    _, err = lint(TEXT, "net.py:Strange")
    assert err.endswith(
        "it needs arguments (teacher); define fxdp_example() in the file, which returns "
        "(model, inputs)\n"
    )


def test_a_file_of_parts(lint: Any) -> None:
    """Only the whole is told of, with names that a shell takes for one word each."""
    text = BLOCKS.partition("def net8")[0].replace("block(8)", "Block(8)").replace("block, ", "")
    Path("my net;ls").mkdir()
    Path("my net;ls/net.py").write_text(HEAD + text)
    status, err = lint("", "my net;ls/net.py")
    assert status == 2
    assert typed(err)[0] == "my net;ls/net.py:Net"
