"""Packed sequences: what stands for them while a model is captured computes what torch's do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fxdp.capture.packed import packed, packed_sequences, padded, through
from fxdp.torch_internals import UserFunctionVariable
from tests.sizes import compare_at

pytestmark = pytest.mark.usefixtures("double")
T, N, F = 5, 6, 3
LENGTHS = torch.tensor([2, 5, 1, 3, 5, 4])
LAYERS: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN,
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without biases": {"bias": False, "batch_first": True},
    "both ways": {"bidirectional": True, "num_layers": 2},
}


def sequences(layer: nn.RNNBase, lengths: Any) -> Tensor:
    """[T, N, F], or samples first; NaN behind the end of each."""
    torch.manual_seed(0)
    behind = torch.arange(T).unsqueeze(1) >= torch.as_tensor(lengths)
    x = torch.randn(T, len(lengths), F).masked_fill(behind.unsqueeze(-1), torch.nan)
    return x.transpose(0, 1) if layer.batch_first else x


def gradients(results: list[Tensor], *by: Tensor) -> list[Tensor]:
    """The gradients of everything by all results."""
    total = sum((r * torch.linspace(0.5, 1.5, r.numel()).view(r.shape)).sum() for r in results)
    return [*torch.autograd.grad(total, by)]  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["no states", "states"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_torch(name: str, options: str, given: str) -> None:
    layer = LAYERS[name](F, 4, **OPTIONS[options])
    x, first = sequences(layer, LENGTHS).requires_grad_(), layer.batch_first
    ways = layer.num_layers * (1 + layer.bidirectional)
    count = 2 if name == "lstm" else 1
    starts = [torch.randn(ways, N, 4, requires_grad=True) for _ in range(count)]
    hx = None if given == "no states" else tuple(starts) if name == "lstm" else starts[0]
    by = [x, *layer.parameters(), *(starts if hx is not None else [])]

    def results(pack: Any, run: Any, pad: Any) -> list[Tensor]:
        out, ends = run(pack(x, LENGTHS, first, enforce_sorted=False), hx)
        steps, lengths = pad(out, first, -1.0, total_length=T + 1)
        assert torch.equal(lengths, LENGTHS)
        return [steps, *(ends if isinstance(ends, tuple) else [ends])]

    want = results(pack_padded_sequence, layer, pad_packed_sequence)
    got = results(packed, lambda s, h: through(layer, s, h), padded)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(gradients(got, *by), gradients(want, *by), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(), (2, 2)])
@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], torch.tensor([5, 4, 2, 2], dtype=torch.int32)])
def test_any_shape_and_any_lengths(shape: tuple[int, ...], lengths: Any) -> None:
    x = torch.randn(T, 4, *shape)
    want = pad_packed_sequence(pack_padded_sequence(x, lengths))
    got = padded(packed(x, lengths), total_length=T)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("length", [0, -1, T + 1])
def test_a_length_that_is_none_makes_its_sample_nan(length: int) -> None:
    """torch refuses the batch."""
    layer, x = nn.LSTM(F, 4), torch.randn(T, 2, F)
    out, (h, c) = through(layer, packed(x, torch.tensor([3, length])), None)
    steps, _ = padded(out, total_length=T)
    assert h[:, 1].isnan().all()
    assert c[:, 1].isnan().all()
    for result in (steps[:3, 0], h[:, 0], c[:, 0]):
        assert result.isfinite().all()


class Reader(nn.Module):
    """Layers both ways on sequences of different lengths, and a loss of all they return."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool, layers: int) -> None:
        super().__init__()
        self.first = batch_first
        self.rnn = kind(F, 4, layers, batch_first=batch_first, bidirectional=True)
        self.again = kind(8, 2, batch_first=batch_first)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        total = x.shape[1 if self.first else 0]
        sequence, states = self.rnn(pack_padded_sequence(x, lengths, self.first, False))
        sequence, _ = self.again(sequence)
        out, own = nn.utils.rnn.pad_packed_sequence(sequence, self.first, total_length=total)
        out = out if self.first else out.transpose(0, 1)
        states = states[0] * states[1] if isinstance(states, tuple) else states
        return ((out.sin().sum((1, 2)) + states.cos().sum((0, 2))) / own).mean()


@pytest.mark.parametrize(
    ("kind", "first", "layers"), [(nn.LSTM, True, 2), (nn.GRU, False, 1), (nn.RNN, True, 1)]
)
def test_a_step_agrees_with_a_loop_over_the_samples(
    kind: type[nn.RNNBase], first: bool, layers: int
) -> None:
    """5 is the number of steps, too; what is behind the end of a sequence is NaN."""
    torch.manual_seed(0)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        lengths = torch.randint(1, T + 1, (n,))
        behind = torch.arange(T) >= lengths.unsqueeze(1)
        return torch.randn(n, T, F).masked_fill(behind.unsqueeze(-1), torch.nan), lengths

    private = compare_at((7, 5, 2, 1), Reader(kind, first, layers), draw)
    x, lengths = draw(4)
    lengths[2] = T + 1
    private(x, lengths).backward()
    assert private.last_nonfinite == 1
    assert private._stepper.record.compilations == 1


def test_nothing_of_torch_stays_replaced() -> None:
    kinds = (nn.LSTM, nn.GRU, nn.RNN)
    own, call = [kind.forward for kind in kinds], UserFunctionVariable.call_function
    with packed_sequences():
        assert [kind.forward for kind in kinds] == own, "torch's guards on them would fail"
        assert UserFunctionVariable.call_function is not call
    assert UserFunctionVariable.call_function is call
    layer = nn.LSTM(F, 4)
    out = torch.compile(lambda s: layer(pack_padded_sequence(s, [3, 1]))[0].data, backend="eager")
    assert out(torch.randn(3, 2, F)).shape == (4, 4)
