"""Logical batches: in pieces of one size, with noise once."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.keys import same_noise
from tests.keywords import grouped

X = torch.randn(11, 4, generator=torch.manual_seed(0), dtype=torch.float64)
Y = torch.arange(11) % 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


class Decayed(nn.Module):
    """A loss with a term that holds no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y) + 0.1 * self.net.weight.square().sum()


def private_of(make: Callable[[], nn.Module] = net, **options: object) -> fxdp.PrivateModule:
    given = {
        "loss_fn": F.cross_entropy if make is net else None, "max_grad_norm": 0.3,
        "noise_multiplier": 1.0, "expected_batch_size": 8.0, "backend": "eager",
        "accountant": "rdp",
    }  # fmt: skip
    return fxdp.compile(make(), **grouped(given | options))


@functools.cache
def in_pieces(size: int | None) -> fxdp.PrivateModule:
    """One step for all tests that only take steps, each with an empty ledger."""
    return private_of(microbatch_size=size)


def gradients(private: fxdp.PrivateModule) -> list[Tensor]:
    found = [p.grad.clone() for p in private.parameters() if p.grad is not None]
    private.zero_grad()
    return found


def stepped(private: fxdp.PrivateModule, size: int, scale: float = 1.0) -> tuple[float, list]:
    """Loss and gradients of one step, with the same noise whoever asks."""
    same_noise(private)
    loss = private(X[:size], Y[:size])
    (loss * scale).backward()
    return loss.item(), gradients(private)


def same(got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want) > 0
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-14)


@pytest.fixture
def whole() -> fxdp.PrivateModule:
    return in_pieces(None)


@pytest.mark.parametrize("size", [0, 1, 2, 7, 11])
@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 20])
def test_pieces_release_what_the_whole_does(
    whole: fxdp.PrivateModule, size: int, pieces: int
) -> None:
    """Loss, clipped sums and noise."""
    private = in_pieces(pieces)
    loss, wanted = stepped(whole, size)
    found, got = stepped(private, size)
    assert found == pytest.approx(loss, rel=1e-5)
    same(got, wanted)
    assert private.releases == 1


def test_one_compilation_serves_every_size() -> None:
    private = private_of(microbatch_size=4)
    for size in (0, 1, 2, 7, 11):
        stepped(private, size)
    assert private._stepper.record.compilations == 1


def test_a_mask_and_a_constant_on_the_loss(whole: fxdp.PrivateModule) -> None:
    private = in_pieces(3)
    same(stepped(private, 8, 2.5)[1], stepped(whole, 8, 2.5)[1])
    mask, found = torch.arange(11) % 4 != 1, []
    for each in (private, whole):
        same_noise(each)
        each(X, Y, sample_mask=mask).backward()
        found.append(gradients(each))
    same(*found)


@pytest.mark.parametrize("pieces", [None, 2])
@pytest.mark.parametrize("cuts", [(11,), (5, 6), (4, 0, 1, 6)])
def test_calls_add_up(whole: fxdp.PrivateModule, cuts: tuple[int, ...], pieces: int | None) -> None:
    private = in_pieces(pieces)
    same_noise(private)
    with private.accumulate():
        for x, y in zip(X.split(cuts), Y.split(cuts), strict=True):
            private(x, y).backward()
            assert all(p.grad is None for p in private.parameters())
    found = gradients(private)
    assert private.releases == 1
    same(found, stepped(whole, 11)[1])


@pytest.mark.parametrize("pieces", [None, 3])
def test_a_term_without_samples_counts_once(pieces: int | None) -> None:
    wanted = stepped(private_of(Decayed), 11)[1]
    private = private_of(Decayed, microbatch_size=pieces)
    same(stepped(private, 11)[1], wanted)
    same_noise(private)
    with private.accumulate():
        for x, y in zip(X.split(4), Y.split(4), strict=True):
            private(x, y).backward()
    same(gradients(private), wanted)


def test_gradients_that_are_there_are_added_to(whole: fxdp.PrivateModule) -> None:
    private = in_pieces(4)
    for p in private.parameters():
        p.grad = torch.ones_like(p)
    _, got = stepped(private, 11)
    same([g - 1 for g in got], [g + 0 for g in stepped(whole, 11)[1]])


class TestAccumulation:
    """Each line of the table in `fxdp.module.accumulation.Accumulation`."""

    @pytest.fixture
    def private(self) -> fxdp.PrivateModule:
        private = in_pieces(None)
        same_noise(private)  # with an empty ledger
        return private

    @pytest.fixture(autouse=True)
    def nothing_was_released(self, private: fxdp.PrivateModule):
        yield
        assert private.releases == 0
        assert all(p.grad is None for p in private.parameters())
        private(X, Y).backward()  # and the next step is a step like any other
        assert private.releases == 1
        private.zero_grad()

    def test_a_call_without_a_backward_pass(self, private: fxdp.PrivateModule) -> None:
        def run(calls: int) -> None:
            with private.accumulate():
                kept = [private(X, Y) for _ in range(calls)]
                assert kept

        for calls in (1, 2):
            with pytest.raises(fxdp.StepError, match="waits"):
                run(calls)

    def test_losses_that_are_scaled_differently(self, private: fxdp.PrivateModule) -> None:
        def run() -> None:
            with private.accumulate():
                private(X[:4], Y[:4]).backward()
                (private(X[4:], Y[4:]) * 2).backward()

        with pytest.raises(fxdp.StepError, match="scaled by 1 and 2"):
            run()

    def test_no_call_at_all(self, private: fxdp.PrivateModule) -> None:
        with pytest.raises(fxdp.StepError, match="no loss in it"), private.accumulate():
            pass

    def test_an_exception(self, private: fxdp.PrivateModule) -> None:
        def run() -> None:
            with private.accumulate():
                private(X, Y).backward()
                raise KeyError

        with pytest.raises(KeyError):
            run()

    def test_they_do_not_nest(self, private: fxdp.PrivateModule) -> None:
        def run() -> None:
            with private.accumulate():
                private(X, Y).backward()
                with private.accumulate():
                    pass

        with pytest.raises(fxdp.StepError, match="nested"):
            run()


def test_a_budget_is_asked_before_the_noise() -> None:
    private = private_of(budget=(0.01, 1e-5), microbatch_size=4)
    with pytest.raises(fxdp.BudgetExhausted):
        private(X, Y).backward()

    def run() -> None:
        with private.accumulate():
            private(X, Y).backward()

    with pytest.raises(fxdp.BudgetExhausted):
        run()
    assert private.releases == 0
    assert all(p.grad is None for p in private.parameters())


def test_one_noise() -> None:
    """As much noise in a batch of many pieces as in one: on empty batches there is nothing else."""
    private = private_of(microbatch_size=1, max_grad_norm=2.0, expected_batch_size=1.0)
    mask, drawn = torch.zeros(11, dtype=torch.bool), []
    torch.manual_seed(0)
    for _ in range(40):
        private(X, Y, sample_mask=mask).backward()
        drawn += [g.flatten() for g in gradients(private)]
    noise = torch.cat(drawn)  # 40 * 15 numbers; 15 % is 5 standard errors
    assert noise.std().item() == pytest.approx(2.0, rel=0.15)


def test_a_second_backward_pass_is_refused() -> None:
    private = in_pieces(4)
    before = private.releases
    loss = private(X, Y)
    loss.backward(retain_graph=True)
    with pytest.raises(fxdp.StepError, match="release again"):
        loss.backward()
    assert private.releases == before + 1
    private.zero_grad()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"microbatch_size": 0}, "a whole number >= 1"),
        ({"microbatch_size": 1.5}, "whole number"),
        ({"microbatch_size": True}, "must be a number"),
        ({"microbatch_size": 4, "loss_reduction": "mean", "loss_fn": None}, "needs a loss_fn"),
    ],
)
def test_bad_input(options: dict[str, object], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        private_of(**options)


def test_memory_is_that_of_a_piece() -> None:
    """No size but a piece's is captured, and the bound may change between steps."""
    private = private_of(microbatch_size=3, noise_multiplier=0.0)
    clipped = stepped(private, 11)[1]
    private.max_grad_norm = math.inf
    plain = net()
    F.cross_entropy(plain(X), Y, reduction="sum").div(8).backward()
    same(stepped(private, 11)[1], [p.grad for p in plain.parameters() if p.grad is not None])
    assert not torch.allclose(clipped[0], stepped(private, 11)[1][0])
    peak = private.report().peak
    assert peak is not None
    assert peak.samples == 3


def test_scales_that_change_count_from_the_next_logical_batch(whole: fxdp.PrivateModule) -> None:
    """A piece that is clipped or divided otherwise than its noise would be under-noised."""
    private = private_of()
    same_noise(private)
    with private.accumulate():
        private(X[:4], Y[:4]).backward()
        private.max_grad_norm, private.expected_batch_size = 50.0, 0.5
        private(X[4:], Y[4:]).backward()
        private.max_grad_norm, private.noise_multiplier = 0.01, 0.0
    same(gradients(private), stepped(whole, 11)[1])
    (run,) = private.ledger.runs
    assert (run.release.max_grad_norm, run.release.noise_multiplier) == (0.3, 1.0)
