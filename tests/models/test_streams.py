"""Streamed gradients end to end: whatever a step does, the release is that of single samples."""

import gc
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.mechanism import streaming
from fxdp.mechanism.clipping import ClippingName
from fxdp.mechanism.streaming import OWNERS
from tests.oracle import clipped_sum, compare, per_sample

STREAM: fxdp.Options = {"strategy": "stream", "plan": "model"}
Y = torch.tensor([0, 2, 1, 1, 2, 0, 1])


class Net(nn.Module):
    """A lookup, a convolution, a norm, a layer that is used twice, a head; in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.conv = nn.Embedding(11, 4), nn.Conv1d(4, 6, 3, padding=1)
        self.norm, self.again, self.head = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.table(ids).mT).mT
        return self.head(self.again(self.again(self.norm(x)).tanh()).mean(1))


def ids(n: int = 7) -> Tensor:
    return torch.randint(11, (n, 5), generator=torch.Generator().manual_seed(1))


def compiled(model: nn.Module, **how: Any) -> fxdp.PrivateModule:
    own: dict[str, Any] = {
        "max_grad_norm": 0.3, "noise_multiplier": 0.0, "expected_batch_size": 5,
        "backend": "eager", "options": STREAM,
    }  # fmt: skip
    return fxdp.compile(model, F.cross_entropy, **own | how)


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12, msg=name)


def test_against_single_samples() -> None:
    """To 1e-9 in float64, and a layer that is used twice is streamed, too."""
    private = compare(Net(), ids(), Y, loss_fn=F.cross_entropy, strategy="stream")
    used = {row.parameter: row.strategy for row in private.report().rows}
    assert used["again.weight"] == used["conv.weight"] == used["head.weight"] == "stream"
    assert used["table.weight"] != "stream"


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("clipping", ["automatic", "normalize", "per-layer", "adaptive"])
def test_every_way_to_clip(clipping: ClippingName) -> None:
    found: list[dict[str, Tensor]] = []
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(2)).double()
    for strategy in ("stream", "instantiate"):
        model = two_layers()
        options: Any = {"strategy": strategy, "plan": "model"}
        compiled(model, clipping=clipping, options=options)(x, Y).backward()
        found.append(grads(model))
    same(*found)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_batches_of_any_size(backend: str) -> None:
    """One compilation; of none, nothing is released but noise, which is 0 here."""
    model = Net()
    private = compiled(model, backend=backend)
    for n in (5, 0, 1, 2, 7):
        model.zero_grad()
        private(ids(n), Y[:n]).backward()
        if n == 0:
            assert not any(g.any() for g in grads(model).values())
            continue
        rows, _ = per_sample(model, F.cross_entropy, (ids(n), Y[:n]), {}, n)
        same(grads(model), clipped_sum(rows, 0.3, 5))


def test_pieces_and_accumulation() -> None:
    wanted = Net()
    compiled(wanted)(ids(), Y).backward()
    model = Net()
    compiled(model, microbatch_size=3)(ids(), Y).backward()
    same(grads(model), grads(wanted))
    model = Net()
    private = compiled(model)
    with private.accumulate():
        for part in (slice(0, 2), slice(2, 7)):
            private(ids()[part], Y[part]).backward()
    same(grads(model), grads(wanted))


def test_the_other_door() -> None:
    wanted, model = Net(), Net()
    compiled(wanted)(ids(), Y).backward()

    def step(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    options: Any = {
        "max_grad_norm": 0.3, "noise_multiplier": 0.0, "expected_batch_size": 5,
        "backend": "eager", **STREAM,
    }  # fmt: skip
    other = torch.compile(step, backend="fxdp", options=options, fullgraph=True)
    other(ids(), Y).backward()
    same(grads(model), grads(wanted))


def test_a_sample_that_is_not_finite() -> None:
    """Has factor 0, and others are what they were."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.net(x) * scale.unsqueeze(1)

    scale, found = torch.ones(7, dtype=torch.float64), []
    for bad, kept in ((math.nan, None), (1.0, [0, 1, 2, 4, 5, 6])):
        scale[3], model = bad, Scaled()
        take = slice(None) if kept is None else kept
        private = compiled(model)
        private(ids()[take], scale[take], Y[take]).backward()
        found.append(grads(model))
    same(*found)


def test_nothing_is_drawn_or_made_twice() -> None:
    """The memory is there once, whatever the number of steps and of samples."""
    model = Net()
    private = compiled(model, noise_multiplier=1.0)
    rooms = private._stepper.record.streams._rooms
    private(ids(), Y).backward()
    (first,) = rooms.values()
    private(ids(3), Y[:3]).backward()
    private(ids(), Y).backward()
    assert [r.data_ptr() for r in rooms.values()] == [first.data_ptr()]


def test_a_module_takes_its_memory_along() -> None:
    model = Net()
    private = compiled(model)
    private(ids(), Y).backward()
    number = private._stepper.record.streams.number
    assert number in OWNERS
    del private
    torch._dynamo.reset()
    gc.collect()
    assert number not in OWNERS


def test_audited() -> None:
    assert fxdp.audit(compiled(Net(), noise_multiplier=1.0), ids(), Y, releases=40)


@pytest.mark.parametrize("wrong", ["factor", "norm", "mute"])
def test_an_audit_sees_what_is_wrong(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    if wrong == "factor":
        true = streaming.add
        monkeypatch.setattr(streaming, "add", lambda i, e, f: true(i, e, torch.ones_like(f)))
    elif wrong == "norm":
        long = streaming.lengths
        monkeypatch.setattr(streaming, "lengths", lambda each: long(each) / 2)
    else:
        monkeypatch.setattr(streaming.Rule, "factors", unmasked(streaming.Rule.factors))
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(2)).double() * 3
    assert not fxdp.audit(compiled(two_layers(), noise_multiplier=1.0), x, Y, releases=40)


def unmasked(true: Any) -> Any:
    """Factors as if every row counted."""
    return lambda self, squares, counts, bound: true(self, squares, counts | True, bound)


@pytest.mark.parametrize("clipping", ["flat", "per-layer"])
def test_nothing_but_what_is_streamed(clipping: ClippingName) -> None:
    """No other parameter asks for a factor, in all groups or in one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False))
    x = torch.randn(7, 5)
    compiled(model, clipping=clipping)(x, Y).backward()
    got = grads(model)
    model.zero_grad()
    options: Any = {"strategy": "instantiate", "plan": "model"}
    compiled(model, clipping=clipping, options=options)(x, Y).backward()
    for name, grad in grads(model).items():
        torch.testing.assert_close(got[name], grad)
