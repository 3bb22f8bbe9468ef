"""Checks of values that raise are left out of a captured step, and nothing else is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxdp
from fxdp.capture.bytecode import statements
from fxdp.torch_internals import translators
from tests.findings import Net
from tests.sizes import compare_at

pytestmark = pytest.mark.usefixtures("double")
D = 4
Body = Callable[[nn.Module, Tensor], Tensor]


def checked(net: nn.Module, x: Tensor) -> Tensor:
    if net.training and x.max() >= 50:
        raise ValueError(f"values must be below 50: {x.shape}")
    if not x.isfinite().all():
        raise RuntimeError
    if (x < -50).any() or (x == 40).any():
        raise ValueError("either")
    return net.fc(x).sin().sum(1)


def leaf(net: nn.Module, x: Tensor) -> Tensor:
    """As feature encoders of speech do while they train."""
    x = x * 2
    x.requires_grad = True
    return net.fc(x).cos().sum(1)


class Both(nn.Module):
    def __init__(self, *bodies: Body) -> None:
        super().__init__()
        self.nets = nn.ModuleList(Net(lambda net, x: x) for _ in bodies)
        self.bodies = bodies

    def forward(self, x: Tensor) -> Tensor:
        return sum(body(net, x) for net, body in zip(self.nets, self.bodies, strict=True))


LEAVES = (leaf,) if torch.__version__ >= (2, 12) else ()


def test_a_step_without_its_checks_is_the_step() -> None:
    compare_at((7, D, 2, 1), Both(checked, *LEAVES), lambda n: (torch.randn(n, D),))


def check(x: Tensor) -> None:
    if x.max() > 50:
        raise ValueError("too much")


def caught(net: nn.Module, x: Tensor) -> Tensor:
    try:
        if x.max() > 50:
            raise ValueError("too much")
    except ValueError:
        x = x.clamp(max=50)
    return net.fc(x).sum(1)


def caught_by_a_caller(net: nn.Module, x: Tensor) -> Tensor:
    try:
        check(x)
    except ValueError:
        x = x.clamp(max=50)
    return net.fc(x).sum(1)


def branch(net: nn.Module, x: Tensor) -> Tensor:
    if x.max() > 50:
        x = x.clamp(max=50)
    return net.fc(x).sum(1)


def either_raises(net: nn.Module, x: Tensor) -> Tensor:
    if x.max() > 50:
        raise ValueError("too much")
    raise ValueError("too little")


def branch_before(net: nn.Module, x: Tensor) -> Tensor:
    if x.max() > 50:
        x = x.clamp(max=50)
        raise ValueError(str(x.shape)) if x.min() > 5 else TypeError
    return net.fc(x).sum(1)


@pytest.mark.parametrize("body", [caught, caught_by_a_caller, branch, either_raises, branch_before])
def test_a_branch_that_does_more_is_refused(body: Body) -> None:
    with pytest.raises(fxdp.CaptureError) as error:
        fxdp.prove(Both(body), torch.randn(5, D))
    assert error.value.diagnostics[0].code.code == "FXD501"


def test_what_is_replaced_is_put_back() -> None:
    before = [list(table) for table in translators()]
    with statements():
        assert [list(table) for table in translators()] != before
    assert [list(table) for table in translators()] == before
