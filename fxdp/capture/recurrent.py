"""Replaces torch's recurrent layers during capture by ones built of the ops of `kernels/recurrent`.

torch's own version for tracing writes out every step, which takes minutes to compile, and leaves
out the dropout between layers.

Letters: T steps, N rows of the batch, F features.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxdp.kernels.recurrent import gru, lstm, rnn
from fxdp.torch_internals import OpOverload, lstm_impl

aten = torch.ops.aten

# One layer in one direction: from input [T, N, F] and first states to states and last ones.
Layer = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, tuple[Tensor, ...]]]


def projected(x: Tensor, w: Tensor, biases: Sequence[Tensor]) -> Tensor:
    return sum(biases[1:], F.linear(x, w, *biases[:1]))


def lstm_layer(x: Tensor, first: Sequence[Tensor], params: Sequence[Tensor]) -> Any:
    w, own, *biases = params
    gates = projected(x, w, biases)
    h, c, own = (t.to(gates.dtype) for t in (*first, own))
    states, cell, *_ = lstm(gates, h, c, own)
    return states, (states[-1], cell)


def gru_layer(x: Tensor, first: Sequence[Tensor], params: Sequence[Tensor]) -> Any:
    w, own, *biases = params
    gates = projected(x, w, biases[:1])
    bias = biases[1] if biases else own.new_zeros(own.shape[0])
    h, own, bias = (t.to(gates.dtype) for t in (*first, own, bias))
    states, _ = gru(gates, h, own, bias)
    return states, (states[-1],)


def rnn_layer(relu: bool) -> Layer:
    def layer(x: Tensor, first: Sequence[Tensor], params: Sequence[Tensor]) -> Any:
        w, own, *biases = params
        gates = projected(x, w, biases)
        h, own = (t.to(gates.dtype) for t in (*first, own))
        states = rnn(gates, h, own, relu)
        return states, (states[-1],)

    return layer


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
        each, ways = 4 if biases else 2, 2 if bidirectional else 1
        last: list[tuple[Tensor, ...]] = []
        for i in range(layers):
            found: list[Tensor] = []
            for way in range(ways):
                at = i * ways + way
                own = params[at * each : (at + 1) * each]
                out, states = layer(x.flip(0) if way else x, [s[at] for s in starts], own)
                found.append(out.flip(0) if way else out)
                last.append(states)
            x = torch.cat(found, -1) if bidirectional else found[0]
            if dropout and i < layers - 1:
                x = F.dropout(x, dropout, train)
        ends = (torch.stack(s) for s in zip(*last, strict=True))
        return x.transpose(0, 1) if batch_first else x, *ends

    return run


RECURRENT: dict[OpOverload, Callable[..., Any]] = {
    aten.lstm.input: stacked(lstm_layer, several=True),
    aten.gru.input: stacked(gru_layer, several=False),
    aten.rnn_tanh.input: stacked(rnn_layer(relu=False), several=False),
    aten.rnn_relu.input: stacked(rnn_layer(relu=True), several=False),
}
