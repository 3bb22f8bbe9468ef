"""The little language of inputs."""

import pytest
import torch

from fxdp.lint.models.inputs import ROWS, Spec, make, parse, written
from fxdp.lint.trouble import Trouble

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("f32[N,3,32,32]", Spec(None, torch.float32, ("N", 3, 32, 32), {})),
        ("i64[N, T=128]", Spec(None, torch.int64, ("N", "T"), {"T": 128})),
        ("mask = bool[N,T]", Spec("mask", torch.bool, ("N", "T"), {})),
        ("float64[8,3]", Spec(None, torch.float64, (8, 3), {})),
        ("bf16[]", Spec(None, torch.bfloat16, (), {})),
    ],
)
def test_reading(text: str, spec: Spec):
    assert parse(text) == spec


@pytest.mark.parametrize("text", ["", "f32", "[N]", "f32[N,-1]", "f32[N,3.5]", "f33[N]", "a b[N]"])
def test_not_read(text: str):
    with pytest.raises(Trouble):
        parse(text)


def test_names_are_shared():
    made = make([parse("f32[N,T,8]"), parse("m=bool[N,T]"), parse("f32[S,8]")], CPU)
    (x, shared), m = made.args, made.kwargs["m"]
    assert x.shape[0] == m.shape[0] == ROWS
    assert x.shape[1] == m.shape[1] != shared.shape[0]
    assert made.dims == (0, None, 0)  # S is no N: all samples share it
    assert make([parse("f32[T=5,N,8]")], CPU).dims == (1,)
    assert make([parse("f32[6,8]")], CPU).dims == (0,)


@pytest.mark.parametrize("texts", [["f32[T=3]", "f32[T=4]"], ["x=f32[N]", "x=f32[N]"]])
def test_what_does_not_go_together(texts: list[str]):
    with pytest.raises(Trouble, match=r"given"):
        make([parse(t) for t in texts], CPU)


def test_written_back():
    assert written(torch.zeros(4, 7, dtype=torch.int64)) == "i64[N,7]"
