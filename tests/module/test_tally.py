"""What became of the samples of a batch."""

import math

import torch
from torch import Tensor, nn

import fxdp
from fxdp.module.tally import Tally
from tests.keywords import grouped

INF = math.inf


def test_pieces() -> None:
    tally = Tally()
    norms, padded = torch.tensor([INF, 9.0, math.nan]), torch.tensor([True, False, True])
    tally.add(torch.tensor([1.0, 3.0]), torch.tensor([True, True]), torch.tensor([True, True]))
    tally.add(norms, norms.isfinite(), padded)
    assert tally.norms()[:3].tolist() == [1.0, 3.0, INF]
    assert tally.nonfinite() == 2
    assert tally.clipped(1.0) == 3
    assert tally.unclipped(1.0) == 0.5 - 1.5
    assert tally.unclipped(3.0) == 0.0


def test_nothing() -> None:
    assert Tally().nonfinite() == Tally().clipped(1.0) == Tally().unclipped(1.0) == 0
    assert Tally().norms().shape == (0,)


class Square(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square().sum(1)


def test_a_module_tells_of_its_last_release() -> None:
    """In one call, in pieces, in several calls; padding and infinite samples apart."""
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    x[1] = INF
    options = {"max_grad_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": 4.0}
    private = fxdp.compile(Square(3, 2), backend="eager", **grouped(options))
    wanted = private.per_sample_norms(x)
    assert private.last_norms.shape == (0,)
    loss = private(x)
    assert private.last_norms.shape == (0,)  # nothing was released yet
    loss.backward()
    torch.testing.assert_close(private.last_norms, wanted, equal_nan=True)
    assert private.last_nonfinite == 1
    private.microbatch_size = 2
    private(x).backward()
    torch.testing.assert_close(private.last_norms, wanted, equal_nan=True)
    private(x, sample_mask=torch.tensor([True, False, True, False, True])).backward()
    torch.testing.assert_close(private.last_norms, wanted[::2])
    with private.accumulate():
        private(x[:1]).backward()
        private(x[1:]).backward()
    torch.testing.assert_close(private.last_norms, wanted, equal_nan=True)
    private(x[:0]).backward()
    assert private.last_norms.shape == (0,)
    assert private.last_nonfinite == 0


class Endless(nn.Linear):
    """Where x is above 9 the loss is infinite, and its gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square().sum(1) + torch.where(x[:, 0] > 9, INF, 0.0)


def test_a_sample_whose_loss_is_infinite_adds_nothing_and_is_counted() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    x[2, 0] = 10.0
    options = {"max_grad_norm": 1.0, "noise_multiplier": 0.0, "expected_batch_size": 4.0}
    private = fxdp.compile(Endless(3, 2), backend="eager", **grouped(options))
    assert private.per_sample_norms(x).isfinite().all()
    private(x).backward()
    assert private.last_nonfinite == 1
    got = private.weight.grad.clone()
    private.zero_grad()
    private(x[[0, 1, 3]]).backward()
    torch.testing.assert_close(got, private.weight.grad)
