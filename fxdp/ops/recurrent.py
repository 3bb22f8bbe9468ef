"""Recurrent layers: every row of the batch has states of its own.

Letters: T steps, N rows, H width, as in `fxdp.kernels.recurrent`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fxdp.forms.each import Each, count, given
from fxdp.kernels import recurrent as own
from fxdp.placement import Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, Value, refuse_samples
from fxdp.torch_internals import OpOverload


def rows(*operands: tuple[Any, int]) -> Placement:
    """Where the samples are in operands that hold rows on these axes: alike, or nowhere."""
    found: set[Placement] = set()
    for x, axis in operands:
        match x.placement:
            case Replicate():
                found.add(Replicate())
            case Shard(dim, inner) if dim == axis:
                found.add(Shard(0, inner))
            case Partial():
                raise Mixed("a total over the batch is used to compute states", "uses-batch-total")
            case _:
                raise Mixed("the states of one sample come of those of others")
    if len(found) != 1:
        raise Mixed("inputs and states do not hold the same samples")
    return found.pop()


def at(axis: int, where: Placement) -> Placement:
    """The same rows, on another axis."""
    return Shard(axis, where.inner) if isinstance(where, Shard) else where


def alike(*lengths: tuple[Any, ...]) -> None:
    """Refuse operands of different numbers of rows, for which the kernels do not look."""
    if len(set(lengths)) != 1:
        raise Mixed("inputs and states have different numbers of rows")


def lstm(call: Call, x: Value, h: Value, c: Value, w: Value) -> tuple[Placement, ...]:
    refuse_samples(w)
    alike(x.shape[1:2], h.shape[:1], c.shape[:1])
    where = rows((x, 1), (h, 0), (c, 0))
    return at(1, where), where, at(1, where), at(2, where)


def gru(call: Call, x: Value, h: Value, w: Value, b: Value) -> tuple[Placement, ...]:
    refuse_samples(w, b)
    alike(x.shape[1:2], h.shape[:1])
    where = rows((x, 1), (h, 0))
    return at(1, where), at(2, where)


def rnn(call: Call, x: Value, h: Value, w: Value, relu: bool) -> Placement:
    refuse_samples(w)
    alike(x.shape[1:2], h.shape[:1])
    return at(1, rows((x, 1), (h, 0)))


def total_of(*gradients: Value) -> Partial | None:
    """A sum over samples, if the gradients of states are: of states that all samples share."""
    found = [g.placement for g in gradients if g.placement != Replicate(zero=True)]
    for at in found:
        if isinstance(at, Partial):
            if all(p == at for p in found):
                return at
            raise Mixed("a total over the batch is used to compute states", "uses-batch-total")
    return None


def lstm_back(
    call: Call, g: Value, last: Value, gates: Value, cells: Value, c: Value, w: Value
) -> tuple[Placement, ...]:
    refuse_samples(w)
    alike(g.shape[1:2], last.shape[:1], gates.shape[1:2], cells.shape[2:3], c.shape[:1])
    if total := total_of(g, last):
        refuse_samples(gates, cells, c)
        return total, total, total
    where = rows((g, 1), (last, 0), (gates, 1), (cells, 2), (c, 0))
    return at(1, where), where, where


def gru_back(
    call: Call, g: Value, states: Value, kept: Value, h: Value, w: Value
) -> tuple[Placement, ...]:
    refuse_samples(w)
    alike(g.shape[1:2], states.shape[1:2], kept.shape[2:3], h.shape[:1])
    if total := total_of(g):
        refuse_samples(states, kept, h)
        return total, total, total
    where = rows((g, 1), (states, 1), (kept, 2), (h, 0))
    return at(1, where), at(1, where), where


def rnn_back(call: Call, g: Value, states: Value, w: Value, relu: bool) -> tuple[Placement, ...]:
    refuse_samples(w)
    alike(g.shape[1:2], states.shape[1:2])
    if total := total_of(g):
        refuse_samples(states)
        return total, total
    where = rows((g, 1), (states, 1))
    return at(1, where), where


RULES: Table = {
    own.lstm.default: Rule(lstm),
    own.lstm_backward.default: Rule(lstm_back),
    own.gru.default: Rule(gru),
    own.gru_backward.default: Rule(gru_back),
    own.rnn.default: Rule(rnn),
    own.rnn_backward.default: Rule(rnn_back),
}


def on_each(op: Callable[..., Any], axes: tuple[int, ...], ends: tuple[int, ...]) -> Any:
    """The op on N batches at once, as one batch of all their rows.

    Args:
        axes, ends: where the rows are in the leading operands and in the results.
    """

    def each(*args: Any) -> tuple[Each, ...]:
        n, held = count(args), len(axes)

        def fold(x: Any, axis: int) -> Tensor:
            return given(x, n).movedim(0, axis).flatten(axis, axis + 1)

        out = op(*map(fold, args[:held], axes), *args[held:])
        parts = ((x.unflatten(axis, (n, -1)), axis) for x, axis in zip(out, ends, strict=True))
        return tuple(Each(x.movedim(axis, 0)) for x, axis in parts)

    return each


EACH: dict[OpOverload, Callable[..., Any]] = {
    own.lstm_backward.default: on_each(own.lstm_backward, (1, 0, 1, 2, 0), (1, 0, 0)),
    own.gru_backward.default: on_each(own.gru_backward, (1, 1, 2, 0), (1, 1, 0)),
    own.rnn_backward.default: on_each(own.rnn_backward, (1, 1), (1, 0)),
}
