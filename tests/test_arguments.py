"""Every way to call a step: by name, nested, with the batch on another axis, with other outputs."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.oracle import compare
from tests.releases import since

N, T, D, C = 6, 5, 4, 3
X, Y = torch.randn(N, D, generator=torch.manual_seed(0)), torch.arange(N) % C


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(D, C)

    def forward(self, x, scale=1.0, shift=None):
        out = self.fc(x) * scale
        out = out if shift is None else out + shift
        return out.square().sum(1)


@pytest.mark.parametrize(
    ("args", "kwargs", "dims"),
    [
        ((X, 2.0), {}, 0),
        ((X,), {"scale": 2.0}, 0),
        ((X,), {"scale": X[:, :1]}, 0),
        ((X,), {"shift": X[:, :C]}, 0),
        ((X, torch.tensor(2.0)), {}, {"scale": None}),
        ((X, torch.ones(C)), {}, {"scale": None}),
    ],
)
def test_inputs(args: Any, kwargs: Any, dims: Any):
    compare(Scaled(), *args, batch_dims=dims, **kwargs)


def test_what_all_share_has_no_axis_of_the_batch():
    with pytest.raises(fxdp.BatchMixingError, match="FXD105"):
        fxdp.prove(Scaled(), X, 2.0, torch.ones(N, C), batch_dims={"shift": None})


class Next(nn.Module):
    """A loss over all positions, flattened."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(D, C)

    def forward(self, x, y):
        return F.cross_entropy(self.fc(x).flatten(0, 1), y.flatten())


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_parts_of_a_larger_tensor(backend: str):
    """A flatten of what is no whole tensor copies; it did not, and torch crashed."""
    x, ids = torch.randn(N, T + 1, D), torch.randint(C, (N, T + 1))
    model = Next()
    parts, whole = (
        fxdp.compile(
            model, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=N, backend=how
        )
        for how in (backend, "eager")
    )
    norms = parts.per_sample_norms(x[:, :-1], ids[:, 1:])
    wanted = whole.per_sample_norms(x[:, :-1].contiguous(), ids[:, 1:].contiguous())
    torch.testing.assert_close(norms, wanted)


class Time(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(D, C)

    def forward(self, x):
        return self.rnn(x)[0][-1]


def test_the_batch_on_axis_one():
    dims = {"x": 1, "target": 0}
    x = torch.randn(T, N, D)
    compare(Time(), x, Y, loss_fn=F.cross_entropy, batch_dims=dims)
    compare(Time(), x, Y, loss_fn=F.cross_entropy, batch_dims={"x": -2})


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(D, C)

    def forward(self, batch, more=()):
        out = self.fc(batch["x"]) + sum(self.fc(m) for m in more)
        return F.cross_entropy(out, batch["y"], reduction="none")


@pytest.mark.parametrize("kwargs", [{}, {"more": (X, X.sin())}, {"more": [X.cos()]}])
def test_nested_inputs(kwargs: Any):
    private = fxdp.compile(
        Nested(), max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=N, backend="eager"
    )
    norms = private.per_sample_norms({"x": X, "y": Y}, **kwargs)
    for i in range(N):
        own = {k: type(v)(m[i : i + 1] for m in v) for k, v in kwargs.items()}
        loss = private._model({"x": X[i : i + 1], "y": Y[i : i + 1]}, **own).sum()
        grads = torch.autograd.grad(loss, list(private.parameters()))
        want = torch.cat([g.flatten() for g in grads]).norm()
        torch.testing.assert_close(norms[i], want, rtol=1e-5, atol=1e-6)


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


class Returns(nn.Module):
    def __init__(self, make: Any):
        super().__init__()
        self.fc, self.make = nn.Linear(D, C), make

    def forward(self, x, y):
        out = self.fc(x)
        return self.make(F.cross_entropy(out, y), out)


@pytest.mark.parametrize(
    "make",
    [
        lambda loss, out: (loss, out),
        lambda loss, out: [loss, out],
        lambda loss, out: {"logits": out, "loss": loss},
        pytest.param(Output, marks=since((2, 12), "a class of a model's own is not captured")),
    ],
)
def test_outputs(make: Any):
    model = Returns(make)
    private = fxdp.compile(
        model, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=N, backend="eager"
    )
    for n in (N, 3):
        got = private(X[:n], Y[:n])
        loss, logits = got if isinstance(got, tuple) else (got.loss, got.logits)
        torch.testing.assert_close(logits, model.fc(X[:n]).detach())
        assert not logits.requires_grad
        torch.testing.assert_close(loss.detach(), F.cross_entropy(logits, Y[:n]))
        loss.backward()
    assert private.releases == 2


def test_a_batch_of_one_shows_one_row():
    private = fxdp.compile(
        Returns(lambda loss, out: (loss, out)), max_grad_norm=1.0, noise_multiplier=0.0,
        expected_batch_size=N, backend="eager",
    )  # fmt: skip
    for n in (1, 0):
        loss, logits = private(X[:n], Y[:n])
        loss.backward()
        assert logits.shape == (n, C)
