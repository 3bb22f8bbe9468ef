"""Rules of recurrent layers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp
from fxdp.kernels import recurrent as own
from fxdp.ops import recurrent
from tests.ops.placements import Case, T, case, each, hold


def of(only: str) -> Callable[..., T]:
    return lambda *shape: T(*shape, only=only)


shard, some, shared = of("shard"), of("replicate shard"), of("replicate")
total, zero = of("partial"), of("partial zero")

# T = 2 steps of 2 rows, 3 wide; of samples, and of what samples share.
CASES = [
    case(own.lstm.default, some(2, 2, 12), some(2, 3), shard(2, 3), shared(12, 3)),
    case(
        own.lstm_backward.default,
        some(2, 2, 3), shard(2, 3), shard(2, 2, 12), shard(2, 2, 2, 3), shard(2, 3), shared(12, 3),
    ),
    case(
        own.lstm_backward.default,
        total(2, 2, 3), zero(2, 3), some(2, 2, 12), shared(2, 2, 2, 3), shared(2, 3), shared(12, 3),
        samples=False,
    ),
    case(own.gru.default, some(2, 2, 9), shard(2, 3), some(9, 3), shared(9)),
    case(
        own.gru_backward.default,
        some(2, 2, 3), some(2, 2, 3), shard(2, 4, 2, 3), shard(2, 3), shared(9, 3),
    ),
    case(
        own.gru_backward.default,
        total(2, 2, 3), some(2, 2, 3), shared(2, 4, 2, 3), shared(2, 3), shared(9, 3),
        samples=False,
    ),
    case(own.rnn.default, T(2, 2, 3), some(2, 3), some(3, 3), each(True, False)),
    case(own.rnn_backward.default, T(2, 2, 3), some(2, 2, 3), some(3, 3), each(True, False)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    hold(case)


def test_every_op_is_tried() -> None:
    assert {c.op for c in CASES} == recurrent.RULES.keys()


class Reader(nn.Module):
    """A recurrent layer of two layers and two directions, whose ends are used too."""

    def __init__(self, kind: type[nn.RNNBase], **options: bool | str) -> None:
        super().__init__()
        self.rnn = kind(3, 4, 2, bidirectional=True, **options)
        self.head = nn.Linear(8, 5)
        self.ends = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, ends = self.rnn(x)
        last = ends[1] if isinstance(ends, tuple) else ends
        axis = 1 if self.rnn.batch_first else 0
        return self.head(out.mean(axis)) + self.ends(last[1])


# The other kinds are in tests/models/test_layers.py.
LAYERS: dict[str, tuple[type[nn.RNNBase], dict[str, bool | str]]] = {
    "lstm": (nn.LSTM, {"batch_first": True}),
    "rnn with relu": (nn.RNN, {"nonlinearity": "relu", "batch_first": True}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_single_samples(name: str) -> None:
    torch.manual_seed(0)
    kind, options = LAYERS[name]
    model = Reader(kind, **options).double()
    x, y = torch.randn(6, 7, 3, dtype=torch.float64), torch.randint(5, (6,))
    assert fxdp.verify(model, x, y, loss_fn=F.cross_entropy, backend="eager")


class Prompt(nn.Module):
    """An LSTM over what all samples share: its gradient is linear in a sum over samples."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(5, 1, 4))
        self.rnn, self.head = kind(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x * self.rnn(self.tokens)[0].sum(0))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_layers_over_what_samples_share(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model = Prompt(kind).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    assert fxdp.verify(model, x, y, loss_fn=F.cross_entropy, backend="eager")


def test_steps_over_samples_are_refused() -> None:
    class Over(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x.unsqueeze(1))[0].squeeze(1))

    with pytest.raises(fxdp.BatchMixingError, match="states of one sample come of those of others"):
        fxdp.prove(Over(), torch.randn(5, 4), torch.randint(3, (5,)), loss_fn=F.cross_entropy)
