"""Opacus's own checks of its privacy engine, asked of fxdp.

They are those of `privacy_engine_test.py` of Opacus 1.6: the level of the noise over steps,
clipping at the bound, all at once and layer by layer, and that what is released is the sum of
the samples' gradients. Seeds are fixed, so that a test that passes goes on passing; with other
seeds a test would raise a false alarm at the rate that it states.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

import fxdp
from fxdp.mechanism.clipping import PerGroup
from tests.keys import same_noise
from tests.keywords import grouped
from tests.oracle import per_sample

L, LR = 6.0, 0.5  # the expected batch size is no batch's own
SIZES = (5, 0, 8, 1)  # of the batches of the steps


class Words(nn.Module):
    """An embedding, attention over the sequence, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 36, 3),
    )  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A model with its data, and how it is run."""

    kind: str
    backend: str

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return images() if self.kind == "images" else Words()

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(size)
        y = torch.randint(3, (size,), generator=draw)
        if self.kind == "images":
            return torch.randn(size, 1, 6, 6, generator=draw), y
        return torch.randint(40, (size, 7), generator=draw), y

    def private(self, model: nn.Module, **options: Any) -> fxdp.PrivateModule:
        given: dict[str, Any] = {"loss_fn": F.cross_entropy, "noise_multiplier": 0.0}
        return fxdp.compile(
            model,
            max_grad_norm=1.0,
            expected_batch_size=L,
            backend=self.backend,
            **grouped({"plan": "model"} | given | options),
        )


@functools.cache
def clipped(subject: Subject) -> tuple[nn.Module, fxdp.PrivateModule]:
    """A step without noise, for tests that set the bound and leave the parameters alone."""
    model = subject.model()
    return model, subject.private(model)


@functools.cache
def noisy(subject: Subject) -> tuple[nn.Module, fxdp.PrivateModule]:
    """A step of noise alone, whatever the parameters are."""
    torch.manual_seed(0)
    # Its graph is compiled, so there it is the quickest with as many parameters.
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 27))
    model = flat if subject.backend == "inductor" else subject.model()
    return model, subject.private(model, loss_fn=no_gradient, noise_multiplier=1.0)


SUBJECTS = [Subject("images", "eager"), Subject("words", "eager"), Subject("images", "inductor")]
each_subject = pytest.mark.parametrize(
    "subject", SUBJECTS, ids=[f"{s.kind}-{s.backend}" for s in SUBJECTS]
)


def no_gradient(out: Tensor, target: Tensor) -> Tensor:
    """A loss that leaves nothing but noise to release."""
    return 0.0 * out.sum(1)


def norm(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad for p in model.parameters()]
    assert all(g is not None for g in found)
    return [g for g in found if g is not None]


@each_subject
def test_noise_level(subject: Subject) -> None:
    """Parameters walk as far as noise of sigma C / L takes them, to 15 %, over steps.

    Opacus's bound on the squared distance. False alarms: below 1e-6 a level.
    """
    (model, private), bound = noisy(subject), 0.7
    private.max_grad_norm = bound
    count = sum(p.numel() for p in model.parameters())
    freedom = count * len(SIZES)
    assert stats.chi2.cdf(0.85 * freedom, freedom) + stats.chi2.sf(1.15 * freedom, freedom) < 1e-6
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    torch.manual_seed(100)
    for sigma in (0.5, 1.3, 5.0):
        private.noise_multiplier = sigma
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        for size in SIZES:
            optimizer.zero_grad()
            private(*subject.batch(size)).backward()
            optimizer.step()
        walked = norm([p.detach() for p in model.parameters()]) ** 2
        expected = freedom * (LR * sigma * bound / L) ** 2
        assert abs(walked - expected) <= 0.15 * expected


@each_subject
def test_flat_clipping(subject: Subject) -> None:
    """A sample alone, longer than the bound, is released with a norm of exactly the bound.

    No chance is involved.
    """
    model, private = clipped(subject)
    x, y = subject.batch(1)
    _, (alone,) = per_sample(model, F.cross_entropy, (x, y), {}, 1)
    private.max_grad_norm = bound = 0.5 * float(alone)
    model.zero_grad()
    private(x, y).backward()
    assert L * norm(gradients(model)) == pytest.approx(bound, rel=1e-5)


@each_subject
def test_per_layer_clipping(subject: Subject) -> None:
    """Of a sample alone, each parameter's gradient has the norm min(its own, the bound).

    The bound is between those norms, so that some are clipped and some are not. No chance is
    involved.
    """
    model = subject.model()
    x, y = subject.batch(1)
    each, _ = per_sample(model, F.cross_entropy, (x, y), {}, 1)
    own = {name: float(g.double().norm()) for name, g in each.items()}
    bound = float(torch.tensor(list(own.values())).median()) * 1.01
    assert min(own.values()) < bound < max(own.values())
    layers = PerGroup({name: 1.0 for name, _ in model.named_parameters()})
    private = subject.private(model, clipping=layers)
    private.max_grad_norm = bound * math.sqrt(len(own))
    private(x, y).backward()
    for (name, wanted), g in zip(own.items(), gradients(model), strict=True):
        assert L * norm([g]) == pytest.approx(min(wanted, bound), rel=1e-4, abs=1e-7), name


@each_subject
def test_aggregation(subject: Subject) -> None:
    """Without clipping and noise, the samples' gradients are summed and divided by L.

    Against plain autograd, a sample at a time, and fxdp's own per-sample gradients. No chance is
    involved.
    """
    model, private = clipped(subject)
    x, y = subject.batch(8)
    each, _ = per_sample(model, F.cross_entropy, (x, y), {}, 8)
    private.max_grad_norm = 99999.0
    model.zero_grad()
    private(x, y).backward()
    found = private.per_sample_grads(x, y)
    assert found.keys() == each.keys() == dict(model.named_parameters()).keys()
    for name, g in zip(each, gradients(model), strict=True):
        torch.testing.assert_close(g, each[name].sum(0) / L, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(g, found[name].sum(0) / L, rtol=1e-4, atol=1e-7)


@each_subject
def test_noise_changes_every_time(subject: Subject) -> None:
    """The same step twice gives every parameter another noise, and with one seed the same.

    False alarms: below 1e-6 for each subject, by Fisher's transformation of the correlation of
    two noises of n numbers, whose standard deviation is 1 / sqrt(n - 3).
    """
    model, private = noisy(subject)
    private.noise_multiplier, private.max_grad_norm = 1.0, 1.0
    drawn: list[list[Tensor]] = []
    for seed in (1, None, 1):
        if seed is not None:
            same_noise(private, seed)
        model.zero_grad()
        private(*subject.batch(5)).backward()
        drawn.append([g.clone() for g in gradients(model)])
    first, second, again = drawn
    for one, other, same in zip(first, second, again, strict=True):
        assert not torch.isclose(one, other, rtol=1e-3).all()
        assert torch.equal(one, same)
    flat = torch.stack([torch.cat([g.flatten() for g in draw]) for draw in (first, second)])
    correlation = math.atanh(float(torch.corrcoef(flat)[0, 1]))
    assert abs(correlation) * math.sqrt(flat.shape[1] - 3) < stats.norm.isf(5e-7)
