"""Recurrent layers as one op a layer, where torch's own tracing unrolls every step.

The gradients of the weights are sums over samples and steps; they are left to plain products of
what the ops return, so that the proof meets sums that it knows. `capture/recurrent` builds
torch's layers of them. What the ops compute, and of what shapes: `fxdp.kernels.recurrent_loops`.
"""

from typing import Any

import torch
from torch import Tensor

from fxdp.kernels import recurrent_loops as loops
from fxdp.kernels.library import define, fake
from fxdp.kernels.recurrent_loops import earlier
from fxdp.kernels.recurrent_native import native_for


def steps_of(*operands: Tensor) -> Any:
    """Who runs the steps of such operands: compiled code, or the loops."""
    return native_for(*operands) or loops


@torch.library.custom_op("fxdp::lstm", mutates_args=())
def _lstm(x: Tensor, h: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return steps_of(x, h, c, w).lstm(x, h, c, w)


@_lstm.register_fake
def _(x: Tensor, h: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps, n, size = x.shape[0], h.shape[0], h.shape[1]
    sizes = (steps, n, size), (n, size), (steps, n, 4 * size), (steps, 2, n, size)
    states, last, gates, cells = map(x.new_empty, sizes)
    return states, last, gates, cells


@define("lstm_backward")
def lstm_backward(
    g_states: Tensor, g_last: Tensor, gates: Tensor, cells: Tensor, c: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return steps_of(g_states, g_last, gates, cells, c, w).lstm_backward(
        g_states, g_last, gates, cells, c, w
    )


@fake("lstm_backward")
def _(
    g_states: Tensor, g_last: Tensor, gates: Tensor, cells: Tensor, c: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n, size = g_last.shape
    return gates.new_empty(gates.shape), g_last.new_empty(n, size), c.new_empty(n, size)


@torch.library.custom_op("fxdp::gru", mutates_args=())
def _gru(x: Tensor, h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return steps_of(x, h, w, b).gru(x, h, w, b)


@_gru.register_fake
def _(x: Tensor, h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    steps, n, size = x.shape[0], h.shape[0], h.shape[1]
    return x.new_empty(steps, n, size), x.new_empty(steps, 4, n, size)


@define("gru_backward")
def gru_backward(
    g_states: Tensor, states: Tensor, kept: Tensor, h: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return steps_of(g_states, states, kept, h, w).gru_backward(g_states, states, kept, h, w)


@fake("gru_backward")
def _(
    g_states: Tensor, states: Tensor, kept: Tensor, h: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    steps, n, size = g_states.shape
    gates = g_states.new_empty(steps, n, 3 * size)
    return gates, torch.empty_like(gates), h.new_empty(n, size)


@torch.library.custom_op("fxdp::rnn", mutates_args=())
def _rnn(x: Tensor, h: Tensor, w: Tensor, relu: bool) -> Tensor:
    return steps_of(x, h, w).rnn(x, h, w, relu)


@_rnn.register_fake
def _(x: Tensor, h: Tensor, w: Tensor, relu: bool) -> Tensor:
    return x.new_empty(x.shape)


@define("rnn_backward")
def rnn_backward(g_states: Tensor, states: Tensor, w: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    return steps_of(g_states, states, w).rnn_backward(g_states, states, w, relu)


@fake("rnn_backward")
def _(g_states: Tensor, states: Tensor, w: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    return states.new_empty(states.shape), states.new_empty(states.shape[1:])


def of_weight(g: Tensor, before: Tensor) -> Tensor:
    """The gradient of a weight from state to gates."""
    return g.flatten(0, 1).t() @ before.flatten(0, 1)


def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    several = output if isinstance(output, tuple) else (output,)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors, *several)
    ctx.rest = [x for x in inputs if not isinstance(x, Tensor)]


def lstm_gradients(ctx: Any, g_states: Tensor, g_last: Tensor, *_: Any) -> tuple[Tensor, ...]:
    _, h, c, w, states, _, gates, cells = ctx.saved_tensors
    g, g_h, g_c = lstm_backward(g_states, g_last, gates, cells, c, w)
    return g, g_h, g_c, of_weight(g, earlier(h, states))


def gru_gradients(ctx: Any, g_states: Tensor, _: Any) -> tuple[Tensor, ...]:
    _, h, w, _, states, kept = ctx.saved_tensors
    given, own, g_h = gru_backward(g_states, states, kept, h, w)
    return given, g_h, of_weight(own, earlier(h, states)), own.sum([0, 1])


def rnn_gradients(ctx: Any, g_states: Tensor) -> tuple[Tensor | None, ...]:
    _, h, w, states = ctx.saved_tensors
    g, g_h = rnn_backward(g_states, states, w, *ctx.rest)
    return g, g_h, of_weight(g, earlier(h, states)), None


_lstm.register_autograd(lstm_gradients, setup_context=keep)
_gru.register_autograd(gru_gradients, setup_context=keep)
_rnn.register_autograd(rnn_gradients, setup_context=keep)

# As they stand in graphs.
lstm = torch.ops.fxdp.lstm
gru = torch.ops.fxdp.gru
rnn = torch.ops.fxdp.rnn
