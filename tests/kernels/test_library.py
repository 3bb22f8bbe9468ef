"""Ops of fxdp's own."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fxdp.kernels.library import define, fake


@define("test_doubled")
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@fake("test_doubled")
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@define("test_double_", mutates_args=("x",))
def double_(x: torch.Tensor, k: int = 2) -> None:
    x.mul_(k)


def test_an_op_is_a_function_with_a_schema() -> None:
    assert torch.ops.fxdp.test_doubled(torch.ones(2)).tolist() == [2, 2]
    assert str(torch.ops.fxdp.test_doubled.default._schema) == (
        "fxdp::test_doubled(Tensor x) -> Tensor"
    )
    with FakeTensorMode():
        assert torch.ops.fxdp.test_doubled(torch.ones(2)).shape == (2,)


def test_an_op_may_write() -> None:
    x = torch.ones(2)
    torch.ops.fxdp.test_double_(x)
    assert x.tolist() == [2, 2]
    assert torch.ops.fxdp.test_double_.default._schema.is_mutable
