"""Losses that do not split into one for each sample, and state that is written from samples."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp
from tests.findings import marked, refused
from tests.oracle import compare

N, T, D = 6, 5, 4
X, Y, IDS = torch.randn(N, D), torch.arange(N) % 3, torch.arange(N * T).reshape(N, T) % 10


class Scores(nn.Module):
    def __init__(self, classes: int = 3):
        super().__init__()
        self.fc = nn.Linear(D, classes)

    def forward(self, x):
        return self.fc(x)


def standardised(out, y):
    each = F.cross_entropy(out, y, reduction="none")
    return (each / each.detach().std()).mean()  # FXD101


def contrastive(out, y):
    pairs = out @ out.T  # FXD101
    return (pairs * torch.eye(len(out))).mean()  # FXD101


def hardest(out, y):
    return F.cross_entropy(out, y, reduction="none").max()  # FXD101


def variance_penalty(out, y):
    return F.cross_entropy(out, y) + out.var(0).sum()  # FXD101


def share_of_total(out, y):
    each = F.cross_entropy(out, y, reduction="none")
    return (each * (each / each.sum()).detach()).sum()  # FXD102


def squared_mean(out, y):
    return out.mean(0).square().sum()  # FXD102


def column(out, y):
    return (out[:, :1] - y[:, None]).square()  # FXD201


def accidental_outer(out, y):
    return (out[:, :1] - y).square().mean()  # FXD101


def logits(out, y):
    return out * 2  # FXD201


def by_size(out, y):
    return F.cross_entropy(out, y) * (2 if len(y) > 4 else 1)  # FXD104


@pytest.mark.parametrize(
    "loss_fn",
    [standardised, contrastive, hardest, variance_penalty, share_of_total, squared_mean, column,
     accidental_outer, logits, by_size],
)  # fmt: skip
def test_loss_is_not_separable(loss_fn: Any):
    kind = fxdp.BatchMixingError
    refused(kind, __file__, marked(loss_fn), Scores(), X, Y, loss_fn=loss_fn)


def tokens(out, y):
    return F.cross_entropy(out.reshape(-1, 3), y.reshape(-1), reduction="none")  # FXD201


def tokens_apart(out, y):
    return F.cross_entropy(out.transpose(1, 2), y, reduction="none")  # FXD201


def tokens_first(out, y):
    each = F.cross_entropy(out.transpose(1, 2), y, reduction="none")
    return each.t().reshape(-1)  # FXD201


@pytest.mark.parametrize("n", [N, T])
@pytest.mark.parametrize("loss_fn", [tokens, tokens_apart, tokens_first])
def test_tokens_are_no_samples(loss_fn: Any, n: int):
    x, y = torch.randn(n, T, D), torch.zeros(n, T, dtype=torch.long)
    (d,) = refused(
        fxdp.BatchMixingError, __file__, marked(loss_fn), Scores(), x, y, loss_fn=loss_fn
    )
    assert "[5*N]" in d.why or "[N, 5]" in d.why


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_of_torch_may_have_no_line():
    with pytest.raises(fxdp.BatchMixingError) as caught:
        fxdp.prove(Scores(1), X, torch.randn(N), loss_fn=F.mse_loss)
    d = caught.value.diagnostics[0]
    assert (d.op, d.code.code) == ("expand", "FXD101")
    assert d.location is None or d.location.file == __file__


KEPT: list[Any] = []


class Keeper(nn.Module):
    """Scores that do something else with their inputs on the way."""

    def __init__(self, aside: Any):
        super().__init__()
        self.fc = nn.Linear(D, 3)
        self.register_buffer("run", torch.zeros(D))
        self.plain, self.list, self.dict, self.aside = torch.zeros(D), [], {}, aside

    def forward(self, x):
        self.aside(self, x.detach())
        return self.fc(x)


def running_mean(m, x):
    m.run.mul_(0.9).add_(x.mean(0), alpha=0.1)  # FXD301


def running_sum(m, x):
    m.run += x.sum(0)  # FXD301


def assigned_buffer(m, x):
    m.run = x.sum(0)  # FXD303


def assigned_mean(m, x):
    m.run = 0.9 * m.run + 0.1 * x.mean(0)  # FXD303


def attribute(m, x):
    m.plain = x * 2  # FXD303


def new_attribute(m, x):
    m.last = x.sum(0)  # FXD303


def activation(m, x):
    m.last = m.fc(x)  # FXD303


def history(m, x):
    m.list.append(x.sum(0))  # FXD303


def entry(m, x):
    m.dict["last"] = x.sum(0)  # FXD303


def global_list(m, x):
    KEPT.append(x.sum(0))  # FXD303


def through_data(m, x):
    m.run.data.copy_(x.sum(0))  # FXD301


def frozen_weight(m, x):
    with torch.no_grad():
        m.fc.weight.add_(x.sum())  # FXD102


@pytest.mark.parametrize(
    "aside",
    [running_mean, running_sum, assigned_buffer, assigned_mean, attribute, new_attribute,
     activation, history, entry, global_list, through_data, frozen_weight],
)  # fmt: skip
def test_state_is_not_written_from_samples(aside: Any):
    model = Keeper(aside)
    refused(fxdp.BatchMixingError, __file__, marked(aside), model, X, Y, loss_fn=F.cross_entropy)
    assert not model.list
    assert not model.dict
    assert not KEPT
    assert not hasattr(model, "last")


class KeeperOfLoss(Keeper):
    def forward(self, x, y):
        return F.cross_entropy(super().forward(x), y), self.fc(x)


@pytest.mark.parametrize("aside", [running_sum, assigned_buffer, new_attribute, history, entry])
def test_nor_through_the_door_of_torch_compile(aside: Any):
    torch._dynamo.reset()
    options = {
        "max_grad_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": 8.0,
        "backend": "eager",
    }  # fmt: skip
    model = KeeperOfLoss(aside)
    with pytest.raises(fxdp.BatchMixingError) as caught:
        torch.compile(model, backend="fxdp", options=options)(X, Y)
    found = caught.value.diagnostics
    assert [(d.location.line, d.code.code) for d in found if d.location] == marked(aside)
    assert model.run.abs().sum() == 0


def looked_at(m, x):
    m.last = m.fc(x)  # fxdp: allow[FXD303] looked at in a debugger


def test_what_may_be_kept_has_no_gradient():
    model = Keeper(looked_at)
    private = compare(model, X, Y, loss_fn=F.cross_entropy)
    assert model.last.shape == (len(X), 3)
    assert not model.last.requires_grad
    assert "in a debugger" in str(private.certificate())


def counted(m, x):
    m.run += 1


def decayed(m, x):
    m.run = 0.9 * m.run + m.fc.weight.detach().sum(0)


@pytest.mark.parametrize("aside", [counted, decayed])
def test_state_may_be_written_from_state(aside: Any):
    model = Keeper(aside)
    private = fxdp.compile(
        model, loss_fn=F.cross_entropy, max_grad_norm=1.0, noise_multiplier=0.0,
        expected_batch_size=N, backend="eager",
    )  # fmt: skip
    private(X, Y).backward()
    want = Keeper(aside)
    want.load_state_dict({**model.state_dict(), "run": torch.zeros(D)})
    aside(want, X)
    assert torch.equal(model.run, want.run)


class Words(nn.Module):
    def __init__(self, **options: Any):
        super().__init__()
        self.rows = nn.Embedding(10, D, **options)

    def forward(self, ids, y):
        return self.rows(ids).mean(1).square().sum(1)  # FXD


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        ({"max_norm": 0.5}, "FXD301", "max_norm"),
        ({"scale_grad_by_freq": True}, "FXD101", "scale_grad_by_freq"),
    ],
)
def test_options_of_embeddings(options: dict[str, Any], code: str, word: str):
    with pytest.raises(fxdp.BatchMixingError) as caught:
        fxdp.prove(Words(**options), IDS, Y)
    d = caught.value.diagnostics[0]
    assert d.code.code == code
    assert d.location is not None
    assert d.location.source.endswith("# FXD")
    assert word in d.remedy


class Centred(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g - g.mean(0)  # FXD102


class Through(Scores):
    def forward(self, x):
        return Centred.apply(self.fc(x))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_backward_of_ones_own():
    kind = fxdp.BatchMixingError
    refused(kind, __file__, marked(Centred), Through(), X, Y, loss_fn=F.cross_entropy)


class Shifted(nn.Module):
    """Samples are added up, then a parameter is added, then the rest is added up."""

    def __init__(self, shift: bool):
        super().__init__()
        self.fc, self.shift = nn.Linear(D, 3), nn.Parameter(torch.randn(3)) if shift else None

    def forward(self, x):
        total = self.fc(x).sum(0)
        return (total if self.shift is None else total + self.shift).mean()


def test_shares_of_a_total_with_a_public_term_are_not_guessed():
    """The local loss has the whole public term, and not a share of it."""
    with pytest.raises(fxdp.BatchMixingError, match="FXD102 .* each sample.s share of a total"):
        fxdp.prove(Shifted(True), torch.randn(N, D))
    model, x = Shifted(False), torch.randn(N, D)
    private = fxdp.compile(
        model, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=N, backend="eager"
    )
    torch.testing.assert_close(private(x), torch.stack([model(row[None]) for row in x]).mean())


WHOLE = {
    "mean": lambda out, y: torch.fft.fft(out).mean(),
    "each": lambda out, y: torch.fft.fft(out).sum(1),
    "of parts": lambda out, y: torch.complex(out, out).sum(),
    "squares": lambda out, y: (torch.fft.fft(out) - 1).square().mean(),
}


@pytest.mark.parametrize("loss_fn", WHOLE.values(), ids=WHOLE)
def test_a_complex_loss_is_called_one(loss_fn: Any) -> None:
    model = Scores()
    private = fxdp.compile(
        model, loss_fn, max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=N
    )
    for call in (lambda: fxdp.prove(model, X, Y, loss_fn=loss_fn), lambda: private(X, Y)):
        with pytest.raises(fxdp.CaptureError, match="FXD202.*complex loss.*must be real") as found:
            call()
        assert "loss.real" in found.value.diagnostics[0].remedy
    assert private.releases == 0


class Spectrum(Scores):
    def forward(self, x):
        return torch.fft.fft(self.fc(x)).mean()


def test_so_it_is_at_the_door_of_torch_compile() -> None:
    torch._dynamo.reset()
    options = {"max_grad_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": N}
    with pytest.raises(fxdp.CaptureError, match="FXD202.*complex loss.*must be real"):
        torch.compile(Spectrum(), backend="fxdp", fullgraph=True, options=options)(X)


def test_a_complex_output_may_become_a_loss() -> None:
    model = Scores()
    compare(model, X, Y, loss_fn=lambda out, y: torch.fft.fft(out).abs().square().mean())
    private = fxdp.compile(
        nn.Sequential(model, Fourier()), max_grad_norm=1e9, noise_multiplier=0.0,
        expected_batch_size=1, backend="eager", loss_reduction="mean",
    )  # fmt: skip
    private(X).abs().square().mean(1).mean().backward()
    assert private.releases == 1


class Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x)
