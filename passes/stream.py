"""Emit one op for the gradients that are streamed: their norms, all factors, and clipped sums.

The factors need the squared norms of the other parameters, which `measure` has emitted. Nothing is
emitted where no gradient is streamed.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.forms import joined
from fxdp.forms.strategy import STRATEGIES
from fxdp.forms.streamed import part_of, tensors
from fxdp.graph.emit import emit
from fxdp.graph.study import Choices, Joint, Squares, Streamed, study
from fxdp.graph.sums import Sum, fake_form, sum_at, value, whole
from fxdp.kernels.precision import wide_dtype
from fxdp.mechanism.clipping_rule import Clipping
from fxdp.mechanism.factors import total, underflow
from fxdp.mechanism.streaming import Rule, Stream, Streams, streamed


def stream(gm: GraphModule, clipping: Clipping, streams: Streams) -> GraphModule:
    """Add a node for all streamed gradients, and put down what it gives.

    Args:
        clipping: how norms become factors, and which parameters are clipped together.
        streams: of the module: where the op finds what to do.
    """
    here, end = study(gm), gm.graph.output_node()
    choices, squares, mark = here.of(Choices), here.of(Squares).nodes, here.of(Joint).mark
    gradients = {c.gradient.parameter: c.gradient for c in choices.all}
    taken = {
        c.gradient.parameter: [s for s in (sum_at(gm, n) for n in c.gradient.sums) if s]
        for c in choices.all
        if STRATEGIES[c.strategy].streams
    }
    if not taken:
        return gm
    groups = clipping.groups(list(gradients))
    forms = {name: joined([fake_form(s) for s in sums]) for name, sums in taken.items()}
    dtypes = {name: value(node).dtype for name, node in squares.items()}
    dtypes |= {name: wide_dtype(next(iter(tensors(form).values()))) for name, form in forms.items()}
    rule = Rule(
        clipping,
        tuple(group.share for group in groups),
        tuple(
            sum(underflow(value(gradients[p].node).numel(), dtypes[p]) for p in group.parameters)
            for group in groups
        ),
        max(dtypes.values(), key=lambda dtype: dtype.itemsize),
    )
    place = {name: k for k, group in enumerate(groups) for name in group.parameters}
    parts = tuple(part_of(form, place[name]) for name, form in forms.items())
    number = streams.add(Stream(parts, rule, choices.rows))

    run = partial(joined_up, list(taken.values()), streams.number, number)
    rest = [[squares[p] for p in group.parameters if p in squares] for group in groups]
    inputs = [[s.inputs for s in sums] for sums in taken.values()]
    found: list[Node] = emit(end, run, inputs, rest, mark.losses, mark.bound, mark.mask)
    k = len(groups)
    sums = dict(zip(taken, found[2 * k :], strict=True))
    sizes = {n: dtypes[n].itemsize * value(node).numel() for n, node in sums.items()}
    scratch = choices.rows * sum(map(int, sizes.values()))
    here.put(Streamed(tuple(found[:k]), tuple(found[k : 2 * k]), sums, scratch))
    return gm


def joined_up(
    taken: list[list[Sum]], owner: int, number: int, inputs: list[Any], rest: list[list[Tensor]],
    loss: Tensor | None, bound: Tensor, mask: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Squared norms [N] of each group, factors [N] of each, and a clipped sum for each parameter.

    Args:
        taken: the sums of each streamed parameter.
        owner, number: of the stream.
        inputs: of these sums.
        rest: squared norms [N] of the other parameters, by group.
        loss: [N], or None.
        bound: C, 0-d.
        mask: bool [N].
    """
    forms = [whole(sums, tuple(own)) for sums, own in zip(taken, inputs, strict=True)]
    operands = [x for form in forms for x in tensors(form).values()]
    others = torch.stack([total(own, mask) for own in rest])
    counts = mask if loss is None else mask & ~torch.isinf(loss)
    squares, factors, *sums = streamed(operands, others, counts, bound, owner, number)
    return [*squares.unbind(0), *factors.unbind(0), *sums]
