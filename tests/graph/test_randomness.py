"""What a model draws: the numbers of the plain model, each once."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.utils.checkpoint import checkpoint

import fxdp
from tests.keywords import grouped

X, Y = torch.randn(12, 6, generator=torch.manual_seed(0)), torch.arange(12) % 3


class Net(nn.Module):
    """Two blocks with dropout, which are computed again in the backward pass if asked for."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        block = (nn.Linear(6, 8), nn.GELU(), nn.Dropout(0.4), nn.Linear(8, 6))
        other = (nn.Linear(6, 8), nn.GELU(), nn.Dropout(0.4), nn.Linear(8, 3))
        self.blocks = nn.ModuleList([nn.Sequential(*block), nn.Sequential(*other)])
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
        return x


def stepped(loss: Any, model: nn.Module) -> list[Tensor]:
    """Loss and gradients of the first step and of one more, from one seed."""
    found: list[Tensor] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        here = loss(X, Y)
        here.backward()
        found += [here.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
        model.zero_grad()
    return found


def plain() -> list[Tensor]:
    model = Net()
    return stepped(lambda x, y: F.cross_entropy(model(x), y), model)


def private(again: bool, bound: float = float("inf"), **options: Any) -> list[Tensor]:
    model = Net(again)
    scales = {"max_grad_norm": bound, "noise_multiplier": 0.0, "expected_batch_size": 12}
    return stepped(fxdp.compile(model, loss_fn=F.cross_entropy, **grouped(scales | options)), model)


@pytest.mark.parametrize(
    ("again", "backend"), [(False, "eager"), (True, "eager"), (False, "inductor")]
)
def test_the_masks_are_the_plain_model_s(again: bool, backend: str) -> None:
    """With one seed. A block that is computed again has the mask that it had."""
    for got, want in zip(private(again, backend=backend), plain(), strict=True):
        torch.testing.assert_close(got, want)


def test_pieces_that_are_worked_out_again() -> None:
    """`torch.utils.checkpoint` inside `microbatch_size`: not a bit is different."""
    options: dict[str, Any] = {"bound": 0.1, "backend": "eager", "microbatch_size": 5}
    one, other = private(False, **options), private(True, **options)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_mask_is_never_drawn_twice() -> None:
    """torch's budget of 0 for activations computes dropout again, with another mask."""
    with (
        functorch_config.patch(activation_memory_budget=0.0),
        pytest.raises(Exception, match="activation_memory_budget"),
    ):
        private(False, backend="eager")
