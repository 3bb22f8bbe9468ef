"""Rows of samples in one node's value: of axes that samples have different numbers of rows of.

An op that works on rows by themselves is proven as if each row were a sample: then it says of a
sample's rows what it says of them when the sample is alone, and a sum over rows is a sum over
samples. Rows and samples meet where an operand says whose rows are whose (`Rule.rows`).

Letters: N samples, R rows.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from fxdp.diagnostics.codes import CODES
from fxdp.diagnostics.diagnostic import BatchMixingError, Diagnostic
from fxdp.graph import marks
from fxdp.graph.nodes import arguments
from fxdp.placement import (
    Iota,
    Mixed,
    Owner,
    Partial,
    Placement,
    Pointer,
    Ragged,
    Replicate,
    Segment,
    Shard,
    Starts,
)
from fxdp.proof.guards import asking_line
from fxdp.rules import ROWS, Call, Rule, SumRule, Value, refuse_counts
from fxdp.shapes import Shape, expr, is_whole, sample_axes, shape_of, show
from fxdp.torch_internals import pytree

Owners = Mapping[sympy.Symbol, Node]
COUNTED = "the number of rows is used as a value"
FIXED = "the program works for one number of rows only, or for as many of one kind as of another"


def ragged_axes(gm: GraphModule, n: sympy.Symbol) -> dict[sympy.Symbol, Node]:
    """For the symbol of each number of rows, the input that says whose they are.

    Raises:
        BatchMixingError: a number of rows is fixed, or is that of other rows or of the samples.
    """
    found: dict[sympy.Symbol, Node] = {}
    says = (marks.ragged.default, marks.owned.default)
    for node in (n for mark in says for n in gm.graph.find_nodes(op="call_function", target=mark)):
        for owner in node.all_input_nodes[1:]:
            rows = expr(owner.meta["val"].shape[0])
            known = isinstance(rows, sympy.Symbol) and rows != n
            if not known or found.setdefault(rows, owner) is not owner:  # pyright: ignore[reportArgumentType]
                code, where = CODES["fixed-batch-size"], asking_line(owner.meta["val"], rows)
                raise BatchMixingError(Diagnostic(code, where, "forward", FIXED, code.remedy))
    return found


def place_ragged(node: Node, n: sympy.Symbol) -> Placement:
    """The mark on an input says what it holds; the sizes must agree."""
    x, owner, target, dim, kind = arguments(node)
    rows, to = (symbol(t) for t in (owner, target))
    shape = shape_of(x.meta["val"].shape)
    at = Segment(dim, rows)
    if kind == "starts" and shape == (n,):
        return Starts(rows)
    if kind != "starts" and 0 <= dim < len(shape) and fits(shape, at, (n, to)):
        match kind:
            case "rows":
                return at
            case "owner":
                return Owner(dim, rows)
            case "pointer":
                return Pointer(dim, rows, to)
            case _:
                raise AssertionError(f"a mark of kind {kind}")
    raise Mixed(f"an input of shape {show(shape, n)} does not hold rows on axis {dim} alone")


def symbol(owner: Node) -> sympy.Symbol:
    """The number of rows of a ragged axis, from the samples of each (`ragged_axes`)."""
    rows = expr(owner.meta["val"].shape[0])
    assert isinstance(rows, sympy.Symbol)
    return rows


def is_ragged(node: Node, axes: Owners) -> bool:
    """Has a node to do with rows: in its operands, in the shape of a result, or in a number?"""
    if not axes:
        return False
    for x in (node, *node.all_input_nodes):
        if isinstance(x.meta.get("placement"), Ragged):
            return True
        for value in pytree.tree_leaves(x.meta.get("val")):
            if isinstance(value, torch.Tensor):
                sizes = shape_of(value.shape)
            else:
                sizes = (expr(value),) if isinstance(value, SYMBOLIC) else ()
            if any(size.has(*axes) for size in sizes):
                return True
    return False


SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def place_rows(
    rule: Rule | None, call: Call, axes: Owners, sizes: set[str], named: Mapping[str, Any],
    args: Any, kwargs: Any,
) -> Any:  # fmt: skip
    """The placement of a node's value where rows of samples are in it.

    Args:
        axes: all ragged axes.
        sizes: names of arguments in which a number of rows is nothing but a size.
        named: the arguments by name.

    Raises:
        Mixed: a row would see other rows, or no rule can tell.
    """
    if rule is None:
        raise Mixed("fxdp has no rule for this op on rows of samples", "no-rule")
    for name, argument in named.items():
        for number in pytree.tree_leaves(argument):
            if isinstance(number, sympy.Expr) and name not in sizes and number.has(*axes):
                raise Mixed(COUNTED, "uses-batch-total")
    if rule.rows is not None and (placed := rule.rows(call, *args, **kwargs)) is not None:
        return placed
    values = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Value)]
    rows = [s for s in axes if any(size.has(s) for shape in call.out for size in shape)]
    if rule.constant:  # of the operand, only the dtype counts
        refuse_values(axes, named)
        if len(rows) > 1:
            raise Mixed("rows of one kind are paired with rows of another")
        unit = rows[0] if rows else call.n
        args, kwargs = pytree.tree_map_only(Value, shared, (args, kwargs))
        return of_rows(rule.place(replace(call, n=unit), *args, **kwargs), unit, call.n)
    for x in values:
        refuse_others(x.placement)
    held = [x.placement.rows for x in values if isinstance(x.placement, Segment)]
    rows = [*dict.fromkeys([*rows, *held])]
    if len(rows) != 1:
        raise Mixed("rows of one kind are paired with rows of another")
    refuse_counts(call, args, kwargs)
    args, kwargs = pytree.tree_map_only(Value, as_samples, (args, kwargs))
    placed = of_rows(rule.place(replace(call, n=rows[0]), *args, **kwargs), rows[0], call.n)
    if not isinstance(rule, SumRule) and any(isinstance(p, Partial) for p in leaves(placed)):
        raise Mixed("rows of the whole batch are added up")
    return placed


def refuse_values(axes: Owners, named: Mapping[str, Any]) -> None:
    """Refuse a constant that is as large as rows are many."""
    if isinstance(value := named.get("fill_value"), sympy.Expr) and value.has(*axes):
        raise Mixed(COUNTED, "uses-batch-total")


def refuse_others(at: Placement) -> None:
    """Refuse, beside rows, what is not a value of theirs."""
    match at:
        case Segment() | Replicate():
            return
        case Owner() | Pointer() | Starts():
            raise Mixed("whose rows are whose, in the whole batch, is used as a value")
        case Partial():
            raise Mixed("a total over the batch meets rows of samples", "uses-batch-total")
        case Shard() | Iota():
            raise Mixed(ROWS)


def shared(x: Value) -> Value:
    """An operand that gives nothing but its dtype."""
    return replace(x, placement=Replicate())


def as_samples(x: Value) -> Value:
    """An operand as a rule sees it to which each row is a sample."""
    at = x.placement
    return replace(x, placement=Shard(at.dim, at.inner)) if isinstance(at, Segment) else x


def of_rows(placed: Any, unit: sympy.Symbol, n: sympy.Symbol) -> Any:
    """What such a rule said, of rows."""

    def meant(at: Placement | None) -> Placement | None:
        if unit == n or isinstance(at, Replicate | Partial | None):
            return at
        if isinstance(at, Shard):
            return Segment(at.dim, unit, at.inner)
        raise Mixed("the result depends on a row's position in the batch")

    return tuple(map(meant, placed)) if isinstance(placed, tuple) else meant(placed)


def leaves(placed: Any) -> list[Any]:
    """Placements, one for each result."""
    return list(placed) if isinstance(placed, tuple) else [placed]


def fits(shape: Shape, at: Placement, others: tuple[sympy.Symbol, ...]) -> bool:
    """Does a shape hold the rows that a placement names, on that axis alone, and no others?

    Args:
        others: symbols of the samples and of rows.
    """
    match at:
        case Segment(dim, rows, inner):
            whole = 0 <= dim < len(shape) and is_whole(shape, Shard(dim, inner), rows)
        case Owner(dim, rows) | Pointer(dim, rows):
            whole = sample_axes(shape, rows) == [dim] and shape[dim] == rows
        case _:
            raise AssertionError(f"{at} is no placement of rows")
    return whole and not any(sample_axes(shape, s) for s in others if s != rows)
