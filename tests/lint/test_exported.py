"""Saved programs: proven where they are plain, refused where loading them could run code."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxdp.lint.cli import main
from fxdp.lint.models.exported import is_arithmetic, load
from fxdp.lint.trouble import Trouble

RAN: list[str] = []


def ran(*_: Any) -> Any:
    RAN.append("code")
    return {}


class Code:
    """Unpickling one runs code."""

    def __reduce__(self) -> Any:
        return ran, ()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.fc(x))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("programs")
    rows = ({0: torch.export.Dim("rows")},)
    for name, model in (("good", nn.Linear(4, 3)), ("bad", Net())):
        program = torch.export.export(model, (torch.randn(6, 4),), dynamic_shapes=rows)
        torch.export.save(program, path / f"{name}.pt2")
    return path


def test_programs(folder: Path, capsys: Any, monkeypatch: Any):
    monkeypatch.chdir(folder)
    assert main(["good.pt2", "--isolated"]) == 0
    assert main(["bad.pt2", "--isolated"]) == 1
    out, _ = capsys.readouterr()
    line = next(i for i, t in enumerate(Path(__file__).read_text().splitlines(), 1)
                if "self.norm(self.fc" in t)  # fmt: skip
    assert f"test_exported.py:{line}:" in out.replace("\n", "")


def changed(file: Path, to: Path, change: Any) -> Path:
    """An archive with other contents: `change(name, data)` gives them, None leaves a file out."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            if (data := change(name.partition("/")[2], old.read(name))) is not None:
                new.writestr(name, data)
    return to


def in_graph(old: str, new: str) -> Any:
    def change(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        assert old.encode() in data
        return data.replace(old.encode(), new.encode())

    return change


def pickled_inputs(name: str, data: bytes) -> bytes:
    if not name.startswith("data/sample_inputs"):
        return data
    buffer = io.BytesIO()
    torch.save(Code(), buffer)
    return buffer.getvalue()


def pickled_weight(name: str, data: bytes) -> bytes:
    if name.endswith("weights_config.json"):
        config = json.loads(data)
        for payload in config["config"].values():
            payload["use_pickle"] = True
        return json.dumps(config).encode()
    return pickle.dumps(Code()) if name.startswith("data/weights/weight") else data


def opaque_constant(name: str, data: bytes) -> bytes:
    if not name.endswith("constants_config.json"):
        return data
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True,
               "tensor_meta": None}  # fmt: skip
    return json.dumps({"config": {"c": payload}}).encode()


TARGET = "torch.ops.aten.linear.default"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (pickled_inputs, "torch cannot load the program"),
        (pickled_weight, "a weight or constant is pickled"),
        (opaque_constant, "the constant 'opaque_obj_0' is an object"),
        (in_graph(TARGET, "torch.hub.load"), "the program calls 'torch.hub.load'"),
        (in_graph(TARGET, "torch.ops.load_library"), "the program calls"),
        (in_graph(TARGET, "torch.ops.aten.from_file.default"), "the program calls"),
        (in_graph(TARGET, "_operator.methodcaller"), "the program calls"),
        (in_graph("Symbol(", "__import__("), "which is not evaluated"),
        (in_graph('\\"builtins.dict\\"', '\\"collections.defaultdict\\"'), "name modules"),
        (lambda name, data: None if name == "models/model.json" else data, "no exported program"),
    ],
)
def test_what_would_run_code_is_refused(folder: Path, tmp_path: Path, change: Any, text: str):
    file = changed(folder / "good.pt2", tmp_path / "evil.pt2", change)
    with pytest.raises(Trouble, match=text):
        load(file)
    assert not RAN


def test_not_a_program(tmp_path: Path, capsys: Any):
    file = tmp_path / "x.pt2"
    file.write_bytes(b"nothing")
    assert main([str(file), "--isolated"]) == 2
    assert main([str(tmp_path / "y.pt2"), "--isolated"]) == 2
    _, err = capsys.readouterr()
    assert "not a program saved by torch.export.save" in err
    assert "y.pt2: no such file" in err


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("s0 + 2*s1", True),
        ("Symbol('s77', positive=True, integer=True)", True),
        ("Add(Integer(2), FloorDiv(s0, 4))", True),
        ("Max(1, s0) <= 4", True),
        ("().__class__", False),
        ("__import__('os')", False),
        ("open('x')", False),
        ("Symbol('s0').subs", False),
        ("Integer('__import__(1)')", False),
        ("[s0 for s0 in s1]", False),
        ("s0[0]", False),
        ("f'{s0}'", False),
        ("lambda: 0", False),
        ("", False),
    ],
)
def test_sizes_are_arithmetic(text: str, fine: bool):
    assert is_arithmetic(text) is fine
