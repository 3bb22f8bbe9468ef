"""Ways to bring a sample's gradient to a bounded norm."""

import math
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.mechanism.clipping import (
    NAMED,
    Adaptive,
    Automatic,
    Clipping,
    Flat,
    Normalize,
    PerGroup,
)
from tests.keywords import grouped
from tests.oracle import per_sample

N, C, L = 9, 0.7, 4.0
X = torch.randn(N, 4, generator=torch.manual_seed(0), dtype=torch.float64) * 3
Y = torch.arange(N) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def private_of(**options: Any) -> fxdp.PrivateModule:
    given = {
        "loss_fn": F.cross_entropy, "max_grad_norm": C, "noise_multiplier": 0.0,
        "expected_batch_size": L, "backend": "eager",
    }  # fmt: skip
    return fxdp.compile(net(), **grouped(given | options))


def clipped(private: fxdp.PrivateModule, rows: Any = slice(None)) -> dict[str, Tensor]:
    """The clipped sum of some samples, before it is divided."""
    private.zero_grad()
    private(X[rows], Y[rows]).backward()
    return {k: p.grad * L for k, p in private.named_parameters() if p.grad is not None}


def by_hand(factor: Any, groups: list[list[str]], shares: list[float]) -> dict[str, Tensor]:
    """The same from one run for each sample."""
    each, _ = per_sample(net(), F.cross_entropy, (X, Y), {}, N)
    found: dict[str, Tensor] = {}
    for names, share in zip(groups, shares, strict=True):
        norms = torch.stack([each[k].flatten(1).norm(dim=1) for k in names]).norm(dim=0)
        scale = torch.tensor([factor(n.item(), C * share) for n in norms], dtype=torch.float64)
        found |= {k: torch.einsum("n...,n->...", each[k], scale) for k in names}
    return found


FIRST, LAST = ["0.weight", "0.bias"], ["2.weight", "2.bias"]
WAYS: dict[str, tuple[str | Clipping, Any, list[list[str]], list[float]]] = {
    "flat": ("flat", lambda n, c: min(1.0, c / n), [FIRST + LAST], [1.0]),
    "automatic": ("automatic", lambda n, c: c / (n + 0.01), [FIRST + LAST], [1.0]),
    "gamma": (Automatic(0.5), lambda n, c: c / (n + 0.5), [FIRST + LAST], [1.0]),
    "normalize": ("normalize", lambda n, c: c / n, [FIRST + LAST], [1.0]),
    "per layer": ("per-layer", lambda n, c: min(1.0, c / n), [FIRST, LAST], [0.5**0.5, 0.5**0.5]),
    "per group": (
        PerGroup({"*.bias": 3.0, "*": 4.0}), lambda n, c: min(1.0, c / n),
        [["0.weight", "2.weight"], ["0.bias", "2.bias"]], [0.8, 0.6],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_against_one_run_for_each_sample(name: str) -> None:
    """And no sample adds more than the bound."""
    clipping, factor, groups, shares = WAYS[name]
    private = private_of(clipping=clipping)
    got, want = clipped(private), by_hand(factor, groups, shares)
    assert got.keys() == want.keys()
    for key, g in got.items():
        torch.testing.assert_close(g, want[key], rtol=1e-9, atol=1e-12)
    for i in range(N):
        alone = clipped(private, slice(i, i + 1)).values()
        assert torch.cat([g.flatten() for g in alone]).norm().item() <= C * (1 + 1e-9)


class TestFactors:
    """Each line of the tables."""

    @pytest.mark.parametrize(
        ("clipping", "norm", "bound", "factor"),
        [
            (Flat(), 0.0, 2.0, 1.0),
            (Flat(), 2.0, 2.0, 1.0),
            (Flat(), 8.0, 2.0, 0.25),
            (Flat(), 8.0, math.inf, 1.0),
            (Automatic(0.5), 0.0, 2.0, 4.0),
            (Automatic(0.5), 1.5, 2.0, 1.0),
            (Normalize(), 0.0, 2.0, 1.0),
            (Normalize(), 8.0, 2.0, 0.25),
            (Normalize(), 0.5, 2.0, 4.0),
        ],
    )
    def test_factor(self, clipping: Clipping, norm: float, bound: float, factor: float) -> None:
        norms = torch.tensor([norm])
        assert clipping.factor(norms, torch.tensor(bound)).tolist() == [factor]

    @pytest.mark.parametrize("clipping", ["automatic", "normalize", "per-layer"])
    def test_what_is_not_finite_adds_nothing_and_padding_neither(self, clipping: str) -> None:
        private = private_of(clipping=clipping)
        rest = [i for i in range(N) if i not in (3, 5)]
        want = clipped(private, rest)
        for bad in (math.inf, math.nan):
            private.zero_grad()
            x = X.clone()
            x[3] = bad
            private(x, Y, sample_mask=torch.arange(N) != 5).backward()
            for name, p in private.named_parameters():
                torch.testing.assert_close(p.grad * L, want[name], rtol=1e-9, atol=1e-12)


class Doubled(Clipping):
    """A way to clip of a user's own, which says all that the step has to do for it."""

    needs_finite_bound: ClassVar[bool] = True

    def factor(self, norms: Tensor, bound: Tensor) -> Tensor:
        return torch.full_like(norms, 1e6)

    def count_noise(self, expected: float) -> float:
        return expected

    def next_bound(self, bound: float, count: float, expected: float) -> float:
        return 2 * bound


class Bold(Flat):
    def factor(self, norms: Tensor, bound: Tensor) -> Tensor:
        return torch.full_like(norms, 1e6)


def test_only_the_factor_of_flat_clipping_is_taken_at_its_word() -> None:
    assert all(way.factor_is_bounded for way in (Flat(), PerGroup(), Adaptive()))
    assert not any(w.factor_is_bounded for w in (Automatic(), Normalize(), Doubled(), Bold()))


def test_a_way_to_clip_says_itself_what_it_needs() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        private_of(clipping=Doubled(), max_grad_norm=math.inf)
    private = private_of(clipping=Doubled(), noise_multiplier=1.0, expected_batch_size=L)
    private(X, Y).backward()
    assert private.max_grad_norm == 2 * C
    assert [type(run.release).__name__ for run in private.ledger.runs] == ["CountedRelease"]
    with pytest.raises(ValueError, match="max_grad_norm cannot follow"):
        fxdp.ScaleScheduler(private_of(clipping=Doubled()), max_grad_norm=lambda step: 1.0)
    assert sorted(name for name, way in NAMED.items() if way.moves_bound) == ["adaptive"]


def test_shares_make_up_the_bound() -> None:
    names = ["a.weight", "a.bias", "b.c.weight", "top"]
    for way in (PerGroup(), PerGroup({"a.*": 1.0, "*": 7.0})):
        groups = way.groups(names)
        assert sorted(n for g in groups for n in g.parameters) == sorted(names)
        assert math.fsum(g.share**2 for g in groups) == pytest.approx(1.0, abs=1e-12)
    assert [g.parameters for g in PerGroup().groups(names)] == [
        ("a.weight", "a.bias"), ("b.c.weight",), ("top",),
    ]  # fmt: skip


def test_the_noise_is_that_of_the_bound() -> None:
    """sigma C on every coordinate, however the bound is shared."""
    private = private_of(clipping="per-layer", noise_multiplier=2.0, expected_batch_size=1.0)
    mask, drawn = torch.zeros(N, dtype=torch.bool), []
    torch.manual_seed(0)
    for _ in range(60):
        private.zero_grad()
        private(X, Y, sample_mask=mask).backward()
        drawn += [p.grad.flatten() for p in private.parameters()]
    # 60 * 43 numbers: the standard error of their deviation is 1.4 %.
    assert torch.cat(drawn).std().item() == pytest.approx(2 * C, rel=0.08)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clipping": "ghost"}, "clipping must be 'flat' or"),
        ({"clipping": 3}, "must be a name or a value"),
        ({"clipping": "automatic", "max_grad_norm": math.inf}, "must be finite"),
        ({"clipping": "adaptive", "max_grad_norm": math.inf}, "must begin in"),
        ({"clipping": Adaptive(max_clipbound=0.5)}, "must begin in"),
    ],
)
def test_bad_input(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        private_of(**options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Automatic(0.0), "gamma must be above 0"),
        (lambda: PerGroup({"*": -1.0}), "weight of"),
        (lambda: Adaptive(target_unclipped_quantile=1.5), "must be in"),
        (lambda: Adaptive(clipbound_learning_rate=0.0), "must be above 0"),
        (lambda: Adaptive(unclipped_num_std=0.0), "must be above 0"),
        (lambda: Adaptive(min_clipbound=2.0, max_clipbound=1.0), "in this order"),
        (lambda: PerGroup({"a.*": 1.0}).groups(["b.weight"]), "no pattern of clipping"),
    ],
)
def test_bad_values(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
