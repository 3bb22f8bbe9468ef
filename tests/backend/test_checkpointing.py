"""`checkpoint=`: activations computed a second time. Not a bit of a release is different."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.keys import same_noise
from tests.keywords import grouped

N = 11
HOW = ("never", "except_last", "always")


class Feed(nn.Sequential):
    """Two dropouts, one of them at rest."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(6, 8), nn.GELU(), nn.Dropout(0.4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
        )  # fmt: skip

    def train(self, mode: bool = True) -> "Feed":
        super().train(mode)
        self[4].eval()
        return self


class Small(nn.Sequential):
    """What compiles quickly, with dropout."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 3), nn.Tanh(), nn.Dropout(0.4))


class Attention(nn.Module):
    """Words that look at each other, with dropout in the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        return self.head(F.scaled_dot_product_attention(h, h, h, dropout_p=0.3).mean(1))


class Recurrent(nn.Module):
    """Two layers, with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(6, 5, num_layers=2, dropout=0.4, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


class Picture(nn.Sequential):
    """Convolutions, with noise of its own between them."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.RReLU(), nn.Dropout2d(0.3), nn.Flatten(),
            nn.Linear(144, 3),
        )  # fmt: skip


MODELS: dict[str, tuple[type[nn.Module], Tensor]] = {
    "feed": (Feed, torch.randn(N, 6, generator=torch.manual_seed(0))),
    "attention": (Attention, torch.arange(N * 5).reshape(N, 5) % 9),
    "recurrent": (Recurrent, torch.randn(N, 2, 6, generator=torch.manual_seed(1))),
    "picture": (Picture, torch.randn(N, 2, 8, 8, generator=torch.manual_seed(2))),
}
Y = torch.arange(N) % 3


def private(model: str | type[nn.Module], checkpoint: str, **options: Any) -> fxdp.PrivateModule:
    torch.manual_seed(0)
    scales = {"max_grad_norm": 0.3, "noise_multiplier": 0.7, "expected_batch_size": N}
    given = {"loss_fn": F.cross_entropy, "backend": "eager", "plan": "fixed"} | scales | options
    made = MODELS[model][0]() if isinstance(model, str) else model()
    return fxdp.compile(made, **grouped({"checkpoint": checkpoint} | given))


def stepped(model: fxdp.PrivateModule, x: Tensor) -> list[Tensor]:
    """Loss, norms and gradients of two steps, with noise, from one seed."""
    found: list[Tensor] = []
    torch.manual_seed(3)
    same_noise(model, 3)
    for _ in range(2):
        loss = model(x, Y)
        loss.backward()
        found += [loss.detach(), model.last_norms]
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
    return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", MODELS)
def test_not_a_bit_is_different(name: str) -> None:
    """Whatever is drawn in the forward half is drawn alike in the backward half."""
    x = MODELS[name][1]
    want, got = (stepped(private(name, how, microbatch_size=4), x) for how in HOW[:2])
    assert len(want) > 4
    assert same(got, want)


def test_compiled_code() -> None:
    """Which draws what its graphs draw."""
    x, options = MODELS["feed"][1], {"microbatch_size": 4}
    want = stepped(private(Small, "never", **options), x)
    got = stepped(private(Small, "except_last", backend="inductor", **options), x)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


@functools.cache
def feed(checkpoint: str) -> fxdp.PrivateModule:
    """Compiled once, for pieces of any size."""
    return private("feed", checkpoint)


@pytest.mark.parametrize("size", [None, 1, 2 * N])
def test_pieces_of_any_size(size: int | None) -> None:
    found: list[list[Tensor]] = []
    for how in HOW[::2]:
        model = feed(how)
        model.microbatch_size = size
        found.append(stepped(model, MODELS["feed"][1]))
    assert same(*found)


def test_a_batch_in_calls() -> None:
    """`accumulate` has its calls' own pieces, and the one that the noise comes with."""

    def step(checkpoint: str) -> list[Tensor]:
        model, x = feed(checkpoint), MODELS["feed"][1]
        model.microbatch_size = 2
        torch.manual_seed(3)
        same_noise(model, 3)
        with model.accumulate():
            for part in (slice(0, 5), slice(5, N)):
                model(x[part], Y[part]).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return grads

    never = step("never")
    assert all(same(step(how), never) for how in HOW[1:])


def test_a_loss_of_the_user_s_own() -> None:
    def step(checkpoint: str) -> list[Tensor]:
        model = private("feed", checkpoint, loss_fn=None, loss_reduction="mean")
        torch.manual_seed(3)
        same_noise(model, 3)
        F.cross_entropy(model(MODELS["feed"][1]), Y).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    assert same(step("always"), step("never"))


def test_in_eval_mode() -> None:
    """A step is private, without dropout; and what is trained next is not changed by that."""
    outputs: list[list[Tensor]] = []
    for how in HOW[::2]:
        model, x = private("feed", how, microbatch_size=4).eval(), MODELS["feed"][1]
        own = stepped(model, x)
        assert model.releases == 2
        outputs.append([*own, *stepped(model.train(), x)])
    assert same(*outputs)


def test_nothing_is_kept() -> None:
    """Between the halves of a step; for the last piece of `except_last` all is, as without."""

    def kept(how: str) -> tuple[int, int]:
        layers = (nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 3))
        model = fxdp.compile(
            nn.Sequential(*layers),
            loss_fn=F.cross_entropy,
            max_grad_norm=1.0,
            backend="eager",
            noise_multiplier=1.0,
            expected_batch_size=N,
            microbatch_size=4,
            options={"checkpoint": how},
        )
        model(MODELS["feed"][1], Y).backward()
        peak = model.report().peak
        assert peak is not None
        return peak.kept, peak.highest

    never, always = kept("never"), kept("always")
    assert kept("except_last") == never
    assert always[0] <= 8 < never[0]  # a size
    assert always[1] <= never[1]
