"""Ops that run graphs of their own: those that capture takes apart, and those it cannot."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.utils.checkpoint import checkpoint

import fxdp
from tests.oracle import compare

N = 5


class Checkpointed(nn.Module):
    """A network whose middle, in which a layer occurs twice, is computed again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6))

    def forward(self, x: Tensor) -> Tensor:
        h: Any = self.first(x).relu()
        for _ in range(2):
            h = checkpoint(self.middle, h, use_reentrant=False)
        return self.last(h)


@pytest.mark.usefixtures("double")
def test_checkpoint() -> None:
    data = torch.randn(N, 4), torch.randint(3, (N,))
    compare(Checkpointed(), *data, loss_fn=F.cross_entropy)


class Random(Checkpointed):
    """The same with dropout, whose mask must be the same both times."""

    def __init__(self) -> None:
        super().__init__()
        self.middle.append(nn.Dropout(0.5))


def test_checkpoint_with_dropout_is_proven() -> None:
    fxdp.prove(Random(), torch.randn(N, 4), torch.randint(3, (N,)), loss_fn=F.cross_entropy)


def branch(h: Tensor) -> Tensor:
    return torch.cond(h.sum() > 0, lambda h: h.sin(), lambda h: h.cos(), (h,))  # cond


def loop(h: Tensor) -> Tensor:
    start = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda i, _: i < 3, lambda i, h: (i + 1, h.sin()), (start, h))[1]  # loop


def scanned(h: Tensor) -> Tensor:
    rows = h.unsqueeze(0).expand(3, -1, -1).contiguous()
    return scan(lambda c, x: ((c + x).tanh(), c * x), torch.zeros_like(h), rows)[1][-1]  # scan


def mapped(h: Tensor) -> Tensor:
    return map_rows(lambda row: row.sin(), h)  # map


class Through(nn.Module):
    """A function of a hidden layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


class Inside(Through):
    """The same in a part that is computed again in backward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.function, self.first(x), use_reentrant=False))


@pytest.mark.parametrize("kind", [Through, Inside])
@pytest.mark.parametrize(
    ("function", "op"), [(branch, "cond"), (loop, "while_loop"), (scanned, "scan"), (mapped, "map")]
)
def test_branches_and_loops_are_refused(
    function: Callable[[Tensor], Tensor], op: str, kind: type[Through]
) -> None:
    data = torch.randn(N, 4), torch.randint(3, (N,))
    torch._dynamo.reset()
    with pytest.raises(fxdp.ProofError) as caught:
        fxdp.prove(kind(function), *data, loss_fn=F.cross_entropy)
    (fault,) = caught.value.diagnostics
    assert fault.code.code == "FXD401"
    assert fault.op.startswith(op)
    assert fault.location is not None
    assert f"# {op.split('_')[-1]}" in fault.location.source
