"""Where the samples are in one node's value, by the rule of its op.

A rule sees the placements and shapes of the operands, with N as a symbol; what it says is held
against the shapes of the results before it is believed.
"""

import contextlib
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch.fx import Node
from torch.fx.node import map_arg

from fxdp.graph import marks
from fxdp.graph.nodes import arguments
from fxdp.placement import (
    Iota,
    Mixed,
    Owner,
    Partial,
    Placement,
    Pointer,
    Replicate,
    Segment,
    Shard,
    Starts,
)
from fxdp.proof.faults import is_backward
from fxdp.proof.layouts import Moved, note, others, settle
from fxdp.proof.ownership import is_torchs, whose
from fxdp.proof.ragged import Owners, is_ragged, place_ragged, place_rows
from fxdp.proof.ragged import fits as fits_rows
from fxdp.rules import Call, Rule, Table, Value, refuse_counts
from fxdp.shapes import expr, is_whole, sample_axes, shape_of, show
from fxdp.torch_internals import OpOverload, pytree

# Names of arguments in which N is nothing but a size, of which the shapes tell, and those that
# rules look at themselves. A pointwise op may take N as a value: see `localize`.
SIZES = {
    "size", "sizes", "shape", "stride", "repeats", "input_size", "input_sizes", "output_size",
    "split_size", "split_sizes", "length", "start", "end", "n", "m", "fill_value", "s", "groups",
}  # fmt: skip
Placed = Placement | tuple[Placement | None, ...] | None


def place(
    node: Node, n: sympy.Symbol, table: Table, backward: bool, axes: Owners | None = None
) -> Placed:
    """The placement of a node's value, from those of its operands.

    Args:
        axes: the ragged axes of the graph, if there are some.
    """
    axes = axes or {}
    if node.op == "placeholder":
        return place_input(node, n, axes)
    if node.target is operator.getitem:
        several, index = arguments(node)
        if isinstance(several.meta.get("placement"), tuple):
            return several.meta["placement"][index]
    if not any(isinstance(v, torch.Tensor) for v in pytree.tree_leaves(node.meta.get("val"))):
        return place_number(node, table)
    shapes = tuple(
        shape_of(v.shape)
        for v in pytree.tree_leaves(node.meta["val"])
        if isinstance(v, torch.Tensor)
    )
    if node.op == "get_attr":
        placed: Any = Replicate()
    elif (marked := MARK_RULES.get(node.target)) is not None:
        placed = marked(node, n)
    else:
        rule = table.get(node.target)  # pyright: ignore[reportArgumentType]
        if rule is None and not is_shared_alone(node, n):
            raise Mixed(f"fxdp has no rule for this {whose(node.target)}", "no-rule")
        call = Call(shapes, n, backward or scales_losses(node, table))
        if is_ragged(node, axes):
            placed = place_rows(rule, call, axes, SIZES, *arguments_of(node, operand))
        else:
            placed = apply(rule, node, call) if rule is not None else shared_results(node)
        placed = spread(node, placed)
        note(node, rule, placed)
    return checked(node, placed, n, axes)


def spread(node: Node, placed: Any) -> Any:
    """One entry for each result, of a rule that gave one for each result that is a tensor.

    Fused attention on a GPU also returns sizes, and nothing where nothing was asked for.
    """
    values = node.meta["val"]
    if not isinstance(placed, tuple) or len(placed) == len(values):
        return placed
    tensors = [isinstance(v, torch.Tensor) for v in values]
    if len(placed) != sum(tensors):
        return placed
    rest = iter(placed)
    return tuple(next(rest) if is_tensor else None for is_tensor in tensors)


def scales_losses(node: Node, table: Table) -> bool:
    """Does only the loss come of a node, by ops that are linear: sums, scales, signs, views?

    Then it may be divided by the number of samples, as a mean divides a sum, and `localize`
    makes that 1 for every sample. Other totals stay refused: a loss that is divided by those of
    the other samples compares samples.
    """
    if any(isinstance(i.meta.get("placement"), Partial) for i in node.all_input_nodes):
        return False
    open_ends, seen = [node], {node}
    while open_ends:
        at = open_ends.pop()
        for user in at.users:
            if is_backward(user) or user in seen or user.target is marks.release.default:
                continue
            rule = table.get(user.target)  # pyright: ignore[reportArgumentType]
            if rule is None or rule.each is None:
                return False
            seen.add(user)
            open_ends.append(user)
    return len(seen) > 1 or any(user.target is marks.release.default for user in node.users)


def is_shared_alone(node: Node, n: sympy.Symbol) -> bool:
    """Is a node made of values without samples only, by an op of torch's that is a function of its
    operands? Then no rule is needed for it.

    ==================================================  =======
    case                                                answer
    ==================================================  =======
    an op of torch's, on shared tensors                 yes
    an op of torch's, on numbers or on nothing          yes
    an op of somebody else's, whatever it is given      no: it may keep what it was given before
    an op that writes to its operands, or runs graphs   no
    a size of the batch among the operands              no
    ==================================================  =======
    """
    if not isinstance(node.target, OpOverload) or node.target._schema.is_mutable:
        return False
    if not is_torchs(node.target):
        return False
    operands = [operand(i) for i in node.all_input_nodes]
    return all(
        isinstance(x.placement, Replicate) if isinstance(x, Value) else not x.has(n)
        for x in operands
    )


def shared_results(node: Node) -> Placement | tuple[Placement, ...]:
    """Every result of a node that is made of values without samples."""
    values = node.meta["val"]
    return tuple(Replicate() for _ in values) if isinstance(values, tuple | list) else Replicate()


def apply(rule: Rule, node: Node, call: Call) -> Any:
    """Call a rule on the operands of a node.

    Raises:
        Mixed: the rule refuses, whatever layout it is given of operands whose layout is open.
    """
    try:
        return apply_as(rule, node, call, operand)
    except Mixed:
        for moved in others(node, call.n):
            with contextlib.suppress(Mixed):
                placed = apply_as(rule, node, call, lambda i, to=moved: relaid(i, to))
                settle(node, moved)
                return placed
        raise


def relaid(node: Node, moved: Moved) -> Value | sympy.Expr:
    """An operand as a rule sees it, in another layout where there is one."""
    value = operand(node)
    at = moved.get(node)
    return replace(value, placement=at) if isinstance(value, Value) and at is not None else value


def apply_as(rule: Rule, node: Node, call: Call, operand: Callable[[Node], Any]) -> Any:
    """Call a rule on the operands of a node, as a function of nodes sees them."""
    named, args, kwargs = arguments_of(node, operand)
    if not rule.pointwise:
        refuse_counts(call, *(v for k, v in named.items() if k not in SIZES))
    return rule.place(call, *args, **kwargs)


def arguments_of(
    node: Node, operand: Callable[[Node], Any]
) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """A node's arguments as a function of nodes sees them: by name, and as they stand."""
    args, kwargs = map_arg(node.args, operand), map_arg(node.kwargs, operand)
    if not isinstance(node.target, OpOverload):
        return {}, args, kwargs
    names = (a.name for a in node.target._schema.arguments)
    return dict(zip(names, args, strict=False)) | kwargs, args, kwargs


def operand(node: Node) -> Value | sympy.Expr:
    """A node as a rule sees it."""
    value = node.meta["val"]
    if isinstance(value, torch.Tensor):
        return Value(node.meta["placement"], shape_of(value.shape), value.dtype)
    return expr(value)


WHOSE = (marks.ragged.default, marks.owned.default)  # they say whose rows are


def place_input(node: Node, n: sympy.Symbol, axes: Owners) -> Placement | None:
    """Inputs are shared by all samples, unless a mark says which axis holds those."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    shape = shape_of(value.shape)
    for rows in axes:
        if held := sample_axes(shape, rows):
            if all(user.target in WHOSE for user in node.users):
                return Segment(held[0], rows)
            raise Mixed(
                "an input has an axis as long as rows are many, and nothing says whose it holds",
                "undeclared-input",
            )
    if not sample_axes(shape_of(value.shape), n):
        return Replicate()
    declared = (marks.samples.default, *WHOSE, marks.release.default, marks.seed.default)
    if all(user.target in declared for user in node.users):
        return Shard(sample_axes(shape_of(value.shape), n)[0])
    raise Mixed(
        "an input has an axis of the batch's size, and nothing says what it holds",
        "undeclared-input",
    )


def place_number(node: Node, table: Table) -> None:
    """Numbers are computed from sizes; a number read from samples is a leak."""
    if node.op == "call_function" and node.target not in table and not is_torchs(node.target):
        raise Mixed(f"fxdp has no rule for this {whose(node.target)}", "no-rule")
    for source in node.all_input_nodes:
        at = source.meta.get("placement")
        is_size = is_torchs(node.target) and str(node.target).startswith("aten.sym_")
        if at is not None and not isinstance(at, Replicate) and not is_size and node.users:
            raise Mixed("a number is read from the samples", "no-rule")


def place_samples(node: Node, n: sympy.Symbol) -> Placement:
    """The mark on an input names the axis; its size must be N."""
    x, dim = arguments(node)
    at, shape = Shard(dim), shape_of(x.meta["val"].shape)
    if shape[at.dim] != n or not is_whole(shape, at, n):
        raise Mixed(
            f"an input of shape {show(shape, n)} does not hold the samples on axis {at.dim} alone",
            "undeclared-input",
        )
    return at


def place_release(node: Node, n: sympy.Symbol) -> Placement:
    """The loss must be a loss for each sample, or a total of those; or a row for each sample."""
    loss = arguments(node)[0]
    at, shape = loss.meta["placement"], shape_of(loss.meta["val"].shape)
    if arguments(node)[6:] not in ((), ("",)):
        if at == Shard(0) and shape[0] == n:
            return at
        raise Mixed(
            f"an output of shape {show(shape, n)} is not one row for each sample",
            "loss-not-separable",
        )
    if at == Shard(0) and shape == (n,) or isinstance(at, Partial) and not shape:
        return Replicate()
    if isinstance(at, Replicate):
        raise Mixed("the loss does not depend on the samples", "loss-not-separable")
    raise Mixed(
        f"a loss of shape {show(shape, n)} is not one number for each sample", "loss-not-separable"
    )


def place_seed(node: Node, n: sympy.Symbol) -> Placement:
    """Ones: one for each sample's loss, or one for the loss of each sample alone."""
    loss = arguments(node)[1].meta["placement"]
    return loss if isinstance(loss, Shard) else Replicate()


MARK_RULES: dict[Any, Callable[[Node, sympy.Symbol], Placement]] = {
    marks.samples.default: place_samples,
    marks.ragged.default: place_ragged,
    marks.release.default: place_release,
    marks.seed.default: place_seed,
    marks.owned.default: lambda node, n: arguments(node)[0].meta["placement"],
    marks.shown.default: lambda node, n: arguments(node)[0].meta["placement"],
}


def checked(node: Node, placed: Any, n: sympy.Symbol, axes: Owners) -> Any:
    """What a rule said, held against the shapes: N stands where the placement says it does."""
    values = node.meta["val"]
    pairs = [(values, placed)]
    if isinstance(values, (tuple, list)):
        if not isinstance(placed, tuple) or len(placed) != len(values):
            raise AssertionError(
                f"the rule of {node.target} gave {placed} for {len(values)} results"
            )
        pairs = list(zip(values, placed, strict=True))
    for value, at in pairs:
        if not isinstance(value, torch.Tensor) or at is None:
            continue
        shape = shape_of(value.shape)
        match at:
            case Segment() | Owner() | Pointer():
                fits = fits_rows(shape, at, (n, *axes))
            case _ if any(sample_axes(shape, rows) for rows in axes):
                fits = False
            case Starts():
                fits = shape == (n,)
            case Shard():
                fits = 0 <= at.dim < len(shape) and is_whole(shape, at, n)
            case Iota(dim, inner):
                fits = sample_axes(shape, n) == [dim] and sympy.expand(shape[dim] - n * inner) == 0
            case _:
                fits = not sample_axes(shape, n)
        if not fits:
            raise Mixed(
                f"the result of shape {show(shape, n)} pairs samples or loses the batch axis"
            )
    return placed
