"""Packed sequences during capture: padded ones with their lengths.

torch packs the steps of all samples into one axis, as long as all sequences together, on which
nothing tells whose a step is. Here they stay padded, and layers hold each sample's state past its
end. Outputs are torch's, to the bit of what it rounds; so the order of the samples does not
matter, and none is asked for.

Letters: T steps, N rows of the batch, F features, H width.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fxdp.capture.patches import calls, stand_ins
from fxdp.capture.recurrent import Layer, gru_layer, in_layers, lstm_layer, rnn_layer
from fxdp.torch_internals import UserFunctionVariable

NO_DATA = "a packed sequence has its steps where other samples have theirs"
NO_LENGTH = "pad_packed_sequence pads to the longest sample, which decides how far all others go"
NO_PROJECTION = "an LSTM with proj_size is not followed on packed sequences"


class Packed:
    """What `pack_padded_sequence` returns while a model is captured.

    Attributes:
        steps: [T, N, *], 0 where a sequence has ended; NaN in a row whose length torch would not
            take.
        lengths: int64 [N], on the device that the user's were on.
        ends: int64 [N], the same on the device of the steps; T for a length torch would not take.
    """

    def __init__(self, steps: Tensor, lengths: Tensor, ends: Tensor) -> None:
        self.steps, self.lengths, self.ends = steps, lengths, ends

    def ended(self) -> Tensor:
        """bool [T, N, *], with axes of size 1."""
        count = torch.arange(self.steps.shape[0], device=self.ends.device).unsqueeze(1)
        return (count >= self.ends).reshape(*self.steps.shape[:2], *[1] * (self.steps.dim() - 2))

    @property
    def data(self) -> Tensor:
        raise NotImplementedError(NO_DATA)

    batch_sizes = sorted_indices = unsorted_indices = data

    def __getitem__(self, index: Any) -> Tensor:
        raise NotImplementedError(NO_DATA)


def packed(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> Packed:
    """`torch.nn.utils.rnn.pack_padded_sequence`.

    A length that is none, 0 or more than T, is no error: that sample gets NaN, and so no part.
    Samples need not be sorted, whatever `enforce_sorted` says.
    """
    steps = input.transpose(0, 1) if batch_first else input
    if not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
    lengths = lengths.to(torch.int64)
    own = lengths.to(input.device)
    wrong = (own < 1) | (own > steps.shape[0])
    found = Packed(steps, lengths, own.masked_fill(wrong, steps.shape[0]))
    steps = steps.masked_fill(found.ended(), 0)
    if steps.is_floating_point():
        steps = steps.masked_fill(wrong.reshape(-1, *[1] * (steps.dim() - 2)), torch.nan)
    return Packed(steps, lengths, found.ends)


def padded(
    sequence: Packed, batch_first: bool = False, padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`torch.nn.utils.rnn.pad_packed_sequence`, to the length that was packed.

    Raises:
        NotImplementedError: `total_length` is not given.
        ValueError: it is less than the length that was packed.
    """
    if total_length is None:
        raise NotImplementedError(NO_LENGTH)
    steps = sequence.steps
    missing = total_length - steps.shape[0]
    if missing < 0:
        raise ValueError(
            f"total_length={total_length} is less than the length that was packed, {steps.shape[0]}"
        )
    steps = steps.masked_fill(sequence.ended(), padding_value)
    if missing > 0:
        more = steps.new_full((missing, *steps.shape[1:]), padding_value)
        steps = torch.cat([steps, more])
    return steps.transpose(0, 1) if batch_first else steps, sequence.lengths


def to_their_ends(layer: Layer, sequence: Packed) -> Callable[..., Any]:
    """A layer on the steps of each row up to its end; backwards, from there on."""
    ended, last = sequence.ended(), (sequence.ends - 1).unsqueeze(-1)  # [T, N, 1] and [N, 1]
    count = torch.arange(ended.shape[0], device=ended.device).reshape(-1, 1, 1)
    turned = torch.where(ended, count, last - count)  # [T, N, 1]

    def along(x: Tensor, at: Tensor) -> Tensor:
        return x.gather(0, at.expand(-1, -1, x.shape[-1]))

    def run(x: Tensor, first: Sequence[Tensor], params: Sequence[Tensor], back: bool) -> Any:
        out, ends = layer(along(x, turned) if back else x, first, params, ended)
        final = along(out, last.unsqueeze(0)).squeeze(0)
        out = out.masked_fill(ended, 0)
        return along(out, turned) if back else out, (final, *ends[1:])

    return run


LAYERS: dict[str, Layer] = {
    "LSTM": lstm_layer, "GRU": gru_layer, "RNN_TANH": rnn_layer(relu=False),
    "RNN_RELU": rnn_layer(relu=True),
}  # fmt: skip


def through(self: nn.RNNBase, input: Packed, hx: Any = None) -> tuple[Packed, Any]:
    """`forward` of a recurrent layer of torch's, on a packed sequence.

    Raises:
        NotImplementedError: it is an LSTM that projects its states.
    """
    if self.proj_size:
        raise NotImplementedError(NO_PROJECTION)
    first: Any = hx
    x, several = input.steps, self.mode == "LSTM"
    if first is None:
        count = self.num_layers * (2 if self.bidirectional else 1)
        zeros = x.new_zeros(count, x.shape[1], self.hidden_size)
        first = (zeros, zeros) if several else zeros
    run = to_their_ends(LAYERS[self.mode], input)
    params = [w for own in self.all_weights for w in own]
    drawn = self.dropout if self.training else 0.0
    out, ends = in_layers(
        run, x, first if several else [first], params, self.bias, self.num_layers, drawn,
        self.bidirectional,
    )  # fmt: skip
    return Packed(out, input.lengths, input.ends), tuple(ends) if several else ends[0]


FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    pack_padded_sequence: packed,
    pad_packed_sequence: padded,
}
FORWARDS = {kind.forward for kind in (nn.LSTM, nn.GRU, nn.RNN)}


def of_packed(function: Any, args: Sequence[Any]) -> Callable[..., Any] | None:
    """What takes the place of a function that is called with what stands for a packed sequence.

    Args:
        args: Dynamo's variables.
    """
    given = any(getattr(v, "value_type", None) is Packed for v in args)
    return through if given and function in FORWARDS else None


@contextlib.contextmanager
def packed_sequences() -> Iterator[None]:
    """While a model is captured: follow packed sequences through recurrent layers."""
    with stand_ins(FUNCTIONS), calls(UserFunctionVariable, lambda own: own.fn, of_packed):
        yield
