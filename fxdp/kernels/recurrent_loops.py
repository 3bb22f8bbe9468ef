"""The steps of recurrent layers, forward and backward, by torch's own ops.

Letters: T steps, N rows of the batch, H width; gates of a cell one after the other.
"""

import torch
from torch import Tensor

aten = torch.ops.aten


def earlier(first: Tensor, states: Tensor) -> Tensor:
    """[T, N, H], the state before each step."""
    return torch.cat([first.unsqueeze(0), states[:-1]])


def lstm(x: Tensor, h: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States [T, N, H], the last cell [N, H], gates i, f, g, o [T, N, 4H], and the cells with
    their tanh [T, 2, N, H].

    Args:
        x: [T, N, 4H], what the gates get of the input, biases included.
        h, c: [N, H], the first state and cell.
        w: [4H, H], from state to gates.
    """
    steps, n, size = len(x), *h.shape
    states, gates = x.new_empty(steps, n, size), x.new_empty(steps, n, 4 * size)
    cells, turned = x.new_empty(steps, 2, n, size), w.t().contiguous()
    # All views of all steps at once: one at a time they would take a tenth of the layer's time.
    views = (gates, gates[..., : 2 * size], *gates.chunk(4, 2), *cells.unbind(1), states)
    for given, *step in zip(x, *views, strict=True):
        row, i_and_f, i, f, g, o, cell, squashed, state = step
        torch.addmm(given, h, turned, out=row)
        i_and_f.sigmoid_()
        g.tanh_()
        o.sigmoid_()
        torch.mul(f, c, out=cell).addcmul_(i, g)
        torch.tanh(cell, out=squashed)
        h, c = torch.mul(o, squashed, out=state), cell
    return states, c.clone(), gates, cells


def lstm_backward(
    g_states: Tensor, g_last: Tensor, gates: Tensor, cells: Tensor, c: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of what the gates get, of the first state, and of the first cell."""
    steps, n, size = g_states.shape
    opened = g_states.new_empty(steps, n, 4 * size)
    g_h, g_c = torch.zeros_like(g_last), g_last + 0
    after, squashes = cells.unbind(1)
    views = (g_states, opened, *opened.chunk(4, 2), *gates.chunk(4, 2), squashes)
    before = (c, *after[:-1])
    for *step, cell in reversed([*zip(*views, before, strict=True)]):
        given, row, to_i, to_f, to_g, to_o, i, f, g, o, squashed = step
        g_h = g_h + given
        g_c.add_(aten.tanh_backward(g_h * o, squashed))
        aten.sigmoid_backward.grad_input(g_h * squashed, o, grad_input=to_o)
        aten.sigmoid_backward.grad_input(g_c * g, i, grad_input=to_i)
        aten.sigmoid_backward.grad_input(g_c * cell, f, grad_input=to_f)
        aten.tanh_backward.grad_input(g_c * i, g, grad_input=to_g)
        g_h, g_c = row @ w, g_c.mul_(f)
    return opened, g_h, g_c


def gru(x: Tensor, h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """States [T, N, H], and [T, 4, N, H]: gates r, z, n, and what the last got of the state.

    Args:
        x: [T, N, 3H], what the gates get of the input, its bias included.
        h: [N, H], the first state.
        w, b: [3H, H] and [3H], from state to gates.
    """
    steps, n, size = len(x), *h.shape
    states, kept = x.new_empty(steps, n, size), x.new_empty(steps, 4, n, size)
    for t in range(steps):
        own = torch.addmm(b, h, w.t()).view(n, 3, size).transpose(0, 1)
        given = x[t].view(n, 3, size).transpose(0, 1)
        torch.add(own[:2], given[:2], out=kept[t, :2]).sigmoid_()
        r, z, new, of_state = kept[t]
        of_state.copy_(own[2])
        torch.addcmul(given[2], r, of_state, out=new).tanh_()
        h = torch.lerp(new, h, z, out=states[t])
    return states, kept


def gru_backward(
    g_states: Tensor, states: Tensor, kept: Tensor, h: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of what the gates get of the input, and of the state, and of the first one."""
    (steps, n, size), (r, z, new, of_state) = g_states.shape, kept.unbind(1)
    of_new, of_z = (1 - z) * (1 - new * new), (earlier(h, states) - new) * z * (1 - z)
    of_r = of_state * r * (1 - r)
    given, own = (g_states.new_empty(steps, n, 3, size) for _ in range(2))
    g_h = torch.zeros_like(h)
    for t in reversed(range(steps)):
        g_h = g_h + g_states[t]
        last = torch.mul(g_h, of_new[t], out=given[t, :, 2])
        torch.mul(last, of_r[t], out=given[t, :, 0])
        torch.mul(g_h, of_z[t], out=given[t, :, 1])
        own[t, :, :2] = given[t, :, :2]
        torch.mul(last, r[t], out=own[t, :, 2])
        g_h = torch.addmm(g_h * z[t], own[t].view(n, 3 * size), w)
    return given.view(steps, n, 3 * size), own.view(steps, n, 3 * size), g_h


def rnn(x: Tensor, h: Tensor, w: Tensor, relu: bool) -> Tensor:
    """States [T, N, H], each the tanh or relu of x[t] + h w^T; x [T, N, H], h [N, H], w [H, H]."""
    states = torch.empty_like(x, memory_format=torch.contiguous_format)
    for t in range(len(x)):
        before = torch.addmm(x[t], h, w.t())
        h = states[t].copy_(before.relu_() if relu else before.tanh_())
    return states


def rnn_backward(g_states: Tensor, states: Tensor, w: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the first state."""
    slope = (states > 0).to(states.dtype) if relu else 1 - states * states
    g, g_h = states.new_empty(states.shape), torch.zeros_like(states[0])
    for t in reversed(range(len(states))):
        g_h = torch.mul(g_h + g_states[t], slope[t], out=g[t]) @ w
    return g, g_h
