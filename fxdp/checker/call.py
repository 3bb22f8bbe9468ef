"""One node of the captured graph, as the checker's rules and its trials read it."""

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Node

from fxdp.checker.claims import Claim, Claims, Partial, Replicate, Shape
from fxdp.torch_internals import OpOverload, library_defs, prims, pytree

# Kernels of fxdp's that a captured graph may have; as torch's ops, they are taken to be functions
# of their operands. Nobody else's are: they may keep what they were given.
KERNELS = {
    f"fxdp::{name}{suffix}"
    for name in ("group_norm", "layer_norm", "lstm", "gru", "rnn", "matrix_exp")
    for suffix in ("", "_backward")
}


@dataclass(frozen=True)
class Operand:
    """A tensor that an op is given: its shape, dtype, and what is claimed of it."""

    claim: Claim
    shape: Shape
    dtype: torch.dtype

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_total(self) -> bool:
        """Is it a total over the batch that may be read sample by sample?"""
        return self.claim == Partial() and self.rank == 0


@dataclass(frozen=True)
class Call:
    """One use of an op.

    Attributes:
        target: the op.
        args, kwargs: as in the graph, with an `Operand` for a tensor, an expression for a number.
        named: the same by the names in the op's schema, defaults filled in.
        shapes: of the results that are tensors, None for others.
        n: the symbol of the number of samples.
    """

    target: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: dict[str, Any]
    shapes: tuple[Shape | None, ...]
    n: sympy.Symbol

    @property
    def name(self) -> str:
        """As "aten.add" or "fxdp.samples", without the overload."""
        return str(self.target).rpartition(".")[0]

    @property
    def tensors(self) -> list[Operand]:
        leaves = pytree.tree_leaves((self.args, self.kwargs), is_leaf=is_leaf)
        return [x for x in leaves if isinstance(x, Operand)]

    @property
    def numbers(self) -> list[Any]:
        """All that is no tensor."""
        leaves = pytree.tree_leaves((self.args, self.kwargs), is_leaf=is_leaf)
        return [x for x in leaves if not isinstance(x, Operand)]

    @property
    def counts(self) -> bool:
        """Is N, or what is computed from it, among the numbers?"""
        return any(isinstance(x, sympy.Basic) and x.has(self.n) for x in self.numbers)

    @property
    def is_shared(self) -> bool:
        """Are all operands without samples, and without their number?"""
        return not self.counts and all(isinstance(x.claim, Replicate) for x in self.tensors)

    @property
    def is_random(self) -> bool:
        drops = self.named.get("dropout_p", self.named.get("p"))
        return torch.Tag.nondeterministic_seeded in self.target.tags and drops != 0

    def key(self) -> tuple[Any, ...]:
        """What a check of this call depends on."""
        return (str(self.target), str(self.args), str(self.kwargs), str(self.shapes))


def is_leaf(x: Any) -> bool:
    return isinstance(x, Operand | sympy.Basic)


def expression(number: Any) -> Any:
    """A number of torch's as an expression."""
    if isinstance(number, torch.SymInt | torch.SymFloat | torch.SymBool):
        return sympy.sympify(number.node.expr)
    return number


def shape(value: Any) -> Shape | None:
    """The shape of a tensor; None for what is none."""
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(sympy.sympify(expression(s)) for s in value.shape)


def results(node: Node) -> tuple[Shape | None, ...]:
    """The shapes of a node's results, in order."""
    value = node.meta.get("val")
    return tuple(map(shape, value if isinstance(value, tuple | list) else (value,)))


def is_torchs(target: OpOverload) -> bool:
    """Is this one of torch's own ops, and none that somebody put into its namespace?"""
    if target.namespace == "prims":
        return getattr(prims, target._opname, None) is target
    return target.namespace == "aten" and target.name() not in library_defs


def called(node: Node, chosen: dict[Node, Claims], n: sympy.Symbol) -> Call | str:
    """A node as a call, or why it is none that can be checked.

    Args:
        chosen: what is known of each of its operands.
    """
    target: Any = node.target
    if not isinstance(target, OpOverload):
        return "an operator that runs graphs, or no op of torch's"
    if not is_torchs(target) and target._schema.name not in KERNELS:
        return f"{target._schema.name} is not torch's, and may keep what it was given"
    if target._schema.is_mutable:
        return "it writes to its operands"

    def operand(x: Node) -> Any:
        value = x.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return expression(value)
        (claim,) = chosen[x]
        assert claim is not None
        return Operand(claim, shape(value) or (), value.dtype)

    args, kwargs = pytree.tree_map_only(Node, operand, (node.args, dict(node.kwargs)))
    args, kwargs = pytree.tree_map_only(torch.SymInt, expression, (args, kwargs))
    schema = target._schema.arguments
    named = {a.name: a.default_value for a in schema}
    named |= dict(zip((a.name for a in schema), args, strict=False)) | kwargs
    return Call(target, tuple(args), kwargs, named, results(node), n)
