"""Connectionist temporal classification: every row of the batch is aligned by itself.

Letters: T steps, N rows, C classes, as in `fxdp.kernels.ctc`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fxdp.forms.each import Each, count, given
from fxdp.kernels import ctc as own
from fxdp.placement import Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, Value, refuse_samples
from fxdp.torch_internals import OpOverload


def rows(*operands: tuple[Value, int]) -> Placement:
    """Where the samples are in operands that hold rows on these axes: alike, or nowhere."""
    found: set[Placement] = set()
    if len({x.shape[axis] for x, axis in operands}) != 1:
        raise Mixed("log-probabilities, targets and lengths have different numbers of rows")
    for x, axis in operands:
        match x.placement:
            case Replicate():
                found.add(Replicate())
            case Shard(dim, inner) if dim == axis:
                found.add(Shard(0, inner))
            case Partial():
                raise Mixed("a total over the batch is used to align labels", "uses-batch-total")
            case _:
                raise Mixed("the labels of one sample are aligned with steps of others")
    if len(found) != 1:
        raise Mixed("log-probabilities, targets and lengths do not hold the same samples")
    return found.pop()


def ctc(
    call: Call, log_probs: Value, targets: Value, steps: Value, labels: Value, *how: Any
) -> tuple[Placement, Placement]:
    where = rows((log_probs, 1), (targets, 0), (steps, 0), (labels, 0))
    return where, where


def ctc_back(
    call: Call, g: Value, log_probs: Value, targets: Value, steps: Value, labels: Value,
    loss: Value, alpha: Value, *how: Any,
) -> Placement:  # fmt: skip
    if isinstance(g.placement, Partial):  # of something that all samples share
        refuse_samples(log_probs, targets, steps, labels, loss, alpha)
        return g.placement
    each = (g, targets, steps, labels, loss, alpha)
    where = rows((log_probs, 1), *((x, 0) for x in each))
    return Shard(1, where.inner) if isinstance(where, Shard) else where


RULES: Table = {
    own.ctc_loss.default: Rule(ctc),
    own.ctc_loss_backward.default: Rule(ctc_back),
}


def each_ctc_back(g: Each, log_probs: Tensor, *rest: Any) -> Each:
    """N gradients of one batch of rows, as one batch of N times as many."""
    n = count(g)

    def fold(x: Any, axis: int) -> Tensor:
        return given(x, n).movedim(0, axis).flatten(axis, axis + 1)

    *tensors, blank, zero_infinity = rest
    given_rows = [fold(x, 0) for x in tensors]
    found = own.ctc_loss_backward(fold(g, 0), fold(log_probs, 1), *given_rows, blank, zero_infinity)
    return Each(found.unflatten(1, (n, -1)).movedim(1, 0))


EACH: dict[OpOverload, Callable[..., Any]] = {own.ctc_loss_backward.default: each_ctc_back}
