"""Rules: what the compiler knows about an op.

A rule's `place` takes the op's own arguments in the op's own order, after a `Call` that describes
the result: a `Value` where the op takes a tensor, a sympy expression where it takes a
number, and everything else as it is. It returns the placement of the result (a tuple for several
results, with None for one that is not a tensor, or of the tensors alone) or raises `Mixed`. An op
that can turn samples into their sum has a `SumRule`, which also takes the sum apart into a form.

Rules are collected in tables, which are plain mappings and join with `|`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from fxdp.placement import Iota, Mixed, Partial, Placement, Replicate, Shard
from fxdp.shapes import Shape, expr, is_whole, quotient
from fxdp.torch_internals import OpOverload, pytree

ROWS = "rows of samples meet what is no row of theirs"
Placements = Placement | tuple[Placement | None, ...]


@dataclass(frozen=True)
class Value:
    """A tensor operand as a rule sees it."""

    placement: Placement
    shape: Shape
    dtype: torch.dtype

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Call:
    """One use of an op.

    Attributes:
        out: shapes of the results that are tensors, in order.
        n: the symbol of the number of samples.
        backward: whether the node belongs to the backward pass. Only there may a 0-d total
            over the batch meet the samples again (see `localize`).
    """

    out: tuple[Shape, ...]
    n: sympy.Symbol
    backward: bool

    @property
    def rank(self) -> int:
        return len(self.out[0])


@dataclass(frozen=True)
class Rule:
    """What the proof needs to know of an op.

    Attributes:
        place: the placement of the results.
        isometry: the op only moves elements about, flips their sign or changes their dtype,
            so that norms survive it.
        identity: the result is the first operand.
        pointwise: the op works element by element with broadcasting, so that a 0-d result
            can be computed for N samples at once by giving it [N] operands.
        adds: the op adds its operands up.
        repeats: the op only repeats its first operand along axes of size 1, as broadcasting does;
            its second is the new shape.
        constant: every element of the result is the same number, or none that was set.
        reshapes: the op gives its first operand the shape that is its second.
        each: for an op that is linear, the same op on N values at once: operands that are sums
            over samples come, and go, as `fxdp.ops.each.Each`.
        generator_at: the first of its results that are no more than the state of a random
            generator, and sizes; None if it has none.
        rows: `place` for operands that tell whose rows are whose (`Owner`, `Pointer`, `Starts`);
            None where it has nothing to say, and each row is a sample to `place`.
    """

    place: Callable[..., Placements]
    isometry: bool = False
    identity: bool = False
    pointwise: bool = False
    adds: bool = False
    repeats: bool = False
    constant: bool = False
    reshapes: bool = False
    each: Callable[..., Any] | None = None
    generator_at: int | None = None
    rows: Callable[..., Placements | None] | None = None


@dataclass(frozen=True)
class SumRule(Rule):
    """The rule of an op that can sum over samples.

    Attributes:
        form: takes the op's arguments, with a `Batch` for each tensor that holds samples,
            and returns the sum as one of `fxdp.forms`.
        rows_form: the same where `rows` placed the result: of the tensors themselves, after the
            sample of each row [R] and the number of samples.
    """

    form: Callable[..., Any] = lambda *_: None
    rows_form: Callable[..., Any] | None = None


Table = Mapping[OpOverload, Rule]


def agreed(call: Call, *values: Any) -> Shard | None:
    """Where the samples are in operands that broadcast to the result; None for no samples.

    Raises:
        Mixed: the operands hold their samples on different axes, or one of them is a sum
            over samples or counts them.
    """
    found: Shard | None = None
    for x in values:
        if not isinstance(x, Value):
            continue
        match x.placement:
            case Replicate():
                continue
            case Shard(dim, inner):
                here = Shard(dim + call.rank - x.rank, inner)
            case Partial():
                raise Mixed(
                    "a total over the batch is used to compute something else", "uses-batch-total"
                )
            case Iota():
                raise Mixed("the result depends on a sample's position in the batch")
            case _:
                raise Mixed(ROWS)
        if found is not None and found != here:
            raise Mixed("the operands hold their samples on different axes")
        found = here
    return found


def keeps_value(old: torch.dtype, new: torch.dtype) -> bool:
    """Does a cast keep what sums and counts are: sums stay sums, and counts count?"""
    if old.is_floating_point or old.is_complex:
        return new.is_floating_point or new.is_complex
    return new in (old, torch.int64, torch.int32)


def refuse_rounding(x: Value, dtype: torch.dtype | None) -> None:
    """Refuse to cast a sum over samples on the way into an op, where it would be no sum."""
    if isinstance(x.placement, Partial) and not keeps_value(x.dtype, dtype or x.dtype):
        raise Mixed("a total over the batch is rounded", "uses-batch-total")


def is_shared(*operands: Any) -> bool:
    """Are all tensors among the operands `Replicate`, and all numbers free of samples?"""
    return all(
        isinstance(x.placement, Replicate) if isinstance(x, Value) else True for x in operands
    )


def refuse_samples(*values: Any) -> None:
    """Refuse operands that hold samples, where an op has no use for them."""
    if not is_shared(*values):
        raise Mixed("the op looks at the samples of the batch together")


def refuse_counts(call: Call, *numbers: Any) -> None:
    """Refuse numbers, at any depth, that are computed from the number of samples."""
    for number in pytree.tree_leaves(numbers):
        if isinstance(number, sympy.Expr) and number.has(call.n):
            raise Mixed("the number of samples is used as a value", "uses-batch-total")


def shared(call: Call, *operands: Any, **named: Any) -> Placements:
    """Every result is one for all samples: for an op that gets no samples, and keeps nothing.

        fxdp.Rule(fxdp.shared)

    Raises:
        Mixed: an operand, at any depth, holds samples or is computed from their number.
    """
    refuse_samples(*pytree.tree_leaves((operands, named)))
    refuse_counts(call, operands, named)
    return tuple(Replicate() for _ in call.out) if len(call.out) != 1 else Replicate()


def linear(call: Call, x: Any, *others: Any) -> Partial | None:
    """x's placement if x is Partial and the op, linear in x, takes nothing else with samples."""
    if isinstance(x, Value) and isinstance(x.placement, Partial):
        refuse_samples(*others)
        return x.placement
    return None


def moved(call: Call, x: Any, move: Callable[[Shard], Shard]) -> Placement:
    """The placement of x after `move` has said where its batch axis goes."""
    match x.placement:
        case Shard() as at:
            return move(at)
        case Iota():
            raise Mixed("the result depends on a sample's position in the batch")
        case Replicate() | Partial():
            return x.placement
        case _:
            raise Mixed(ROWS)


def followed(call: Call, x: Any, move: Callable[[Shard], Shard]) -> Placement:
    """`moved`, for ops that keep every element, so that a count of samples stays one."""
    if isinstance(x.placement, Iota):
        count = x.placement
        at = move(Shard(count.dim, count.inner))
        if quotient(call.out[0][at.dim], call.n * at.inner) != 1:
            raise Mixed("the result depends on a sample's position in the batch")
        return Iota(at.dim, at.inner, count.step)
    return moved(call, x, move)


def whole(call: Call, at: Shard) -> Shard:
    """`at`, if the result holds all samples there and nowhere else."""
    if not is_whole(call.out[0], at, call.n):
        raise Mixed("the result pairs samples with samples")
    return at


def cut(call: Call, x: Any, at: Shard, start: Any, step: Any, length: Any) -> Shard:
    """A slice of the batch axis: allowed where it takes whole batches."""
    unit = call.n * at.inner
    if step == 1 and quotient(expr(start), unit) is not None and quotient(length, unit) is not None:
        return at
    raise Mixed("it takes some samples of the batch and leaves others")
