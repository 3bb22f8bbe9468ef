"""Replaces torch's recurrent layers during capture by ones built of the ops of `kernels/recurrent`.

torch's own version for tracing writes out every step, which takes minutes to compile, and leaves
out the dropout between layers.

Letters: T steps, N rows of the batch, F features.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxdp.kernels.recurrent import gru, lstm, rnn
from fxdp.torch_internals import OpOverload, lstm_impl

aten = torch.ops.aten

# One layer in one direction: from input [T, N, F], first states, parameters, and the steps that are
# held, to states and last ones.
Layer = Callable[
    [Tensor, Sequence[Tensor], Sequence[Tensor], Tensor | None], tuple[Tensor, tuple[Tensor, ...]]
]
# The same, on steps that end where those of each row end, and told whether to go backwards.
Way = Callable[
    [Tensor, Sequence[Tensor], Sequence[Tensor], bool], tuple[Tensor, tuple[Tensor, ...]]
]
KEPT, LET, SHUT = 0.0, math.inf, -math.inf  # what a gate gets where a step is held


def projected(x: Tensor, w: Tensor, biases: Sequence[Tensor]) -> Tensor:
    return sum(biases[1:], F.linear(x, w, *biases[:1]))


def held_at(gates: Tensor, held: Tensor | None, *values: float) -> Tensor:
    """Gates [T, N, k H] that keep the state at the steps that are held.

    Args:
        held: bool [T, N, 1].
        values: what each of the k gates gets there.
    """
    if held is None:
        return gates
    size = gates.shape[-1] // len(values)
    parts = zip(gates.split(size, -1), values, strict=True)
    return torch.cat([part.masked_fill(held, value) for part, value in parts], -1)


def lstm_layer(
    x: Tensor, first: Sequence[Tensor], params: Sequence[Tensor], held: Tensor | None = None
) -> Any:
    """Where a step is held, the cell stays what it was: all of it is remembered, nothing added."""
    w, own, *biases = params
    gates = held_at(projected(x, w, biases), held, SHUT, LET, KEPT, KEPT)
    h, c, own = (t.to(gates.dtype) for t in (*first, own))
    states, cell, *_ = lstm(gates, h, c, own)
    return states, (states[-1], cell)


def gru_layer(
    x: Tensor, first: Sequence[Tensor], params: Sequence[Tensor], held: Tensor | None = None
) -> Any:
    """Where a step is held, the state stays what it was."""
    w, own, *biases = params
    gates = held_at(projected(x, w, biases[:1]), held, KEPT, LET, KEPT)
    bias = biases[1] if biases else own.new_zeros(own.shape[0])
    h, own, bias = (t.to(gates.dtype) for t in (*first, own, bias))
    states, _ = gru(gates, h, own, bias)
    return states, (states[-1],)


def rnn_layer(relu: bool) -> Layer:
    def layer(
        x: Tensor, first: Sequence[Tensor], params: Sequence[Tensor], held: Tensor | None = None
    ) -> Any:
        """Held steps have no meaning: no gate keeps the state."""
        w, own, *biases = params
        gates = projected(x, w, biases)
        h, own = (t.to(gates.dtype) for t in (*first, own))
        states = rnn(gates, h, own, relu)
        return states, (states[-1],)

    return layer


def whole(layer: Layer) -> Way:
    """A layer on all steps, in both directions."""

    def run(x: Tensor, first: Sequence[Tensor], params: Sequence[Tensor], back: bool) -> Any:
        out, states = layer(x.flip(0) if back else x, first, params, None)
        return out.flip(0) if back else out, states

    return run


def in_layers(
    run: Way, x: Tensor, starts: Sequence[Tensor], params: Sequence[Tensor], biases: bool,
    layers: int, dropout: float, bidirectional: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """All layers in all directions: [T, N, F], and the last states [layers * directions, N, H].

    Args:
        starts: first states, of all layers and directions.
        params: of each layer and direction, one after the other; with two biases, or without.
        dropout: between layers; 0 where none is to be drawn.
    """
    each, ways = 4 if biases else 2, 2 if bidirectional else 1
    last: list[tuple[Tensor, ...]] = []
    for i in range(layers):
        found: list[Tensor] = []
        for way in range(ways):
            at = i * ways + way
            own = params[at * each : (at + 1) * each]
            out, states = run(x, [s[at] for s in starts], own, way == 1)
            found.append(out)
            last.append(states)
        x = torch.cat(found, -1) if bidirectional else found[0]
        if dropout and i < layers - 1:
            x = F.dropout(x, dropout)
    return x, [torch.stack(s) for s in zip(*last, strict=True)]


def stacked(layer: Layer, several: bool) -> Callable[..., tuple[Tensor, ...]]:
    """All layers in all directions, as torch's ops take and return them.

    Args:
        several: the first states are a list, as an LSTM's are.
    """

    def run(
        x: Tensor, first: Any, params: list[Tensor], biases: bool, layers: int, dropout: float,
        train: bool, bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        starts = first if several else [first]
        if several and starts[0].shape[2] != starts[1].shape[2]:
            rest = (biases, layers, dropout, train, bidirectional, batch_first)
            return lstm_impl(x, first, params, *rest)
        x = x.transpose(0, 1) if batch_first else x
        drawn = dropout if train else 0.0
        x, ends = in_layers(whole(layer), x, starts, params, biases, layers, drawn, bidirectional)
        return x.transpose(0, 1) if batch_first else x, *ends

    return run


def lstm_cell(
    x: Tensor, state: Sequence[Tensor], w: Tensor, own: Tensor, *biases: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM; torch's own for GPUs is one kernel, without one for tracing."""
    h, c = state
    bias, own_bias = biases or (None, None)
    keep, forget, new, shown = (F.linear(x, w, bias) + F.linear(h, own, own_bias)).chunk(4, 1)
    c = forget.sigmoid() * c + keep.sigmoid() * new.tanh()
    return shown.sigmoid() * c.tanh(), c


def gru_cell(x: Tensor, h: Tensor, w: Tensor, own: Tensor, *biases: Tensor | None) -> Tensor:
    """One step of a GRU, in the same way."""
    bias, own_bias = biases or (None, None)
    reset, keep, new = F.linear(x, w, bias).chunk(3, 1)
    own_reset, own_keep, own_new = F.linear(h, own, own_bias).chunk(3, 1)
    new = (new + (reset + own_reset).sigmoid() * own_new).tanh()
    return new + (keep + own_keep).sigmoid() * (h - new)


RECURRENT: dict[OpOverload, Callable[..., Any]] = {
    aten.lstm.input: stacked(lstm_layer, several=True),
    aten.gru.input: stacked(gru_layer, several=False),
    aten.rnn_tanh.input: stacked(rnn_layer(relu=False), several=False),
    aten.rnn_relu.input: stacked(rnn_layer(relu=True), several=False),
    aten.lstm_cell.default: lstm_cell,
    aten.gru_cell.default: gru_cell,
}
