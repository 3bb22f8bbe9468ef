"""A captured program must be the same program for every number of samples.

Capture follows the Python of a model with one batch in hand. Where that Python, or an op, asks
about a size (`if len(x) > 4`, `x.view(8, -1)`), torch goes on with the answer for this batch and
notes the question as a guard. A guard on the number of samples N that not every N from 2 up
meets says that other batches would run another program, of which nothing was proven: adding
one sample could change what all the others contribute.
"""

import linecache
import re
import sys
from dataclasses import replace
from typing import Any

import sympy
from torch import SymInt, Tensor
from torch.fx import GraphModule, Node

from fxdp.diagnostics.codes import CODES
from fxdp.diagnostics.diagnostic import BatchMixingError, Diagnostic, ProofError
from fxdp.diagnostics.location import Location, Noted, is_library
from fxdp.graph.origin import diagnose
from fxdp.proof.ownership import is_torchs, overloads, whose
from fxdp.rules import Table
from fxdp.torch_internals import (
    HigherOrderOperator,
    OpOverload,
    OpOverloadPacket,
    ShapeEnv,
    ShapeGuard,
    ValueRanges,
    bound_sympy,
    int_oo,
    shorten_filename,
)

N = sympy.Symbol("N", integer=True, positive=True)


NOTED = re.compile(r"# (?P<file>\S+):(?P<line>\d+) in (?P<function>\S+)$")


# torch asks for the size of a batch to choose among its convolution kernels, which compute the
# same: (file, function) that asks, where `one_kernel` does not keep it from asking.
HARMLESS = ("fake_impls.py", "conv")


# Up to these, sizes are for the one kernel, and beyond for another: indices of 32 bits, and batches
# for cuDNN's normalisation. A graph is proven for the batches below; torch's own guard has a larger
# one captured anew, and that program, which holds from some N up, is refused.
CEILINGS = {65535, 880801}
INDICES = 2**31 - 1


# Ops that run graphs of their own, of which the joint graph shows no more than a name.
CLOSED = {
    "associative_scan",
    "cond",
    "flex_attention",
    "map_impl",
    "scan",
    "switch",
    "while_loop",
    "while_loop_stack_output",
}


OPEN = "write it with ops on whole tensors (torch.where) or as a Python loop, which is traced"


def refuse_closed(gm: GraphModule, table: Table) -> None:
    """Refuse branches and loops that stay ops, into which no proof can look; and ops that are not
    torch's and return no tensor, of which the graph that is proven would show nothing.

    Args:
        gm: the program as Dynamo captured it.
        table: the rules.

    Raises:
        ProofError: it has some.
    """
    nodes = [n for m in gm.modules() if isinstance(m, GraphModule) for n in m.graph.nodes]
    found = [
        replace(diagnose(node, "it runs a graph of its own", "no-rule"), remedy=OPEN)
        for node in nodes
        if isinstance(node.target, HigherOrderOperator) and node.target.name() in CLOSED
    ]
    found += [
        diagnose(
            node,
            f"fxdp has no rule for this {whose(node.target)}",
            "no-rule",
            (node.name, "value kept by the model"),
        )
        for node in nodes
        if returns_no_tensor(node)
        and not is_torchs(node.target)
        and table.keys().isdisjoint(overloads(node.target))
    ]
    if found:
        raise ProofError(*dict.fromkeys(found))


def returns_no_tensor(node: Node) -> bool:
    """Does an op return numbers, or nothing: is it there for what it does?"""
    if not isinstance(node.target, OpOverload | OpOverloadPacket):
        return False
    results = [r for op in overloads(node.target) for r in op._schema.returns]
    return not any("Tensor" in str(r.type) for r in results)


def refuse_fixed_size(mask: Tensor) -> None:
    """Refuse a program that needs one certain N.

    Args:
        mask: the fake tensor of shape [N].

    Raises:
        BatchMixingError: the size is fixed, by the line that the error names.
    """
    env, own = names_of(mask)
    if own.is_Integer:
        lines = (asker(g) for g in env.guards if question(g, env, own) is not None)
        where = next((line for line in lines if line is not None), None)
        why = f"the program works for batches of {own} samples only"
        code = CODES["fixed-batch-size"]
        raise BatchMixingError(Diagnostic(code, where, "forward", why, code.remedy))


def refuse_other_programs(mask: Tensor, what: str = "N") -> None:
    """Refuse a program that holds for some N only.

    Args:
        mask: the fake tensor of shape [N].
        what: the number that N is: of samples, or of their rows.

    Raises:
        BatchMixingError: what is computed depends on N.
    """
    env, own = names_of(mask)
    code = CODES["depends-on-batch-size"]
    found: dict[Location | None, Diagnostic] = {}
    for guard in env.guards:
        asked = question(guard, env, own)
        if asked is not None and not always(asked, env) and not is_ceiling(asked):
            why = f"what is computed depends on whether {asked.subs(N, sympy.Symbol(what))}"
            where = asker(guard)
            found.setdefault(where, Diagnostic(code, where, "forward", why, code.remedy))
    if found:
        located = [d for where, d in found.items() if where is not None]
        raise BatchMixingError(*(located or found.values()))


def asking_line(tensor: Tensor, size: sympy.Expr) -> Location | None:
    """The user's first line that asked about a size, whatever torch has made of its symbol since.

    Args:
        tensor: a fake tensor of that program.
    """
    env: ShapeEnv = tensor.fake_mode.shape_env  # type: ignore[attr-defined]
    asked = (g for g in env.guards if any(env.simplify(s) == size for s in g.expr.free_symbols))  # type: ignore[arg-type]
    return next((line for g in asked if (line := asker(g)) is not None), None)


def names_of(mask: Tensor) -> tuple[ShapeEnv, sympy.Expr]:
    """What torch knows of sizes, and what N is there: a symbol, or a number."""
    env: ShapeEnv = mask.fake_mode.shape_env  # type: ignore[attr-defined]
    size = mask.shape[0]
    return env, env.simplify(size.node.expr) if isinstance(size, SymInt) else sympy.Integer(size)


def question(guard: ShapeGuard, env: ShapeEnv, own: sympy.Expr) -> sympy.Basic | None:
    """What a guard asks about N; None if nothing, or only whether two tensors have the same N."""
    asked_by = guard.sloc.framework_loc
    if (str(getattr(asked_by, "filename", ""))[-13:], getattr(asked_by, "name", "")) == HARMLESS:
        return None
    names = [s for s in guard.expr.free_symbols if env.simplify(s) == own]  # type: ignore[arg-type]
    asked = guard.expr.subs(dict.fromkeys(names, N))
    return asked if names and asked != sympy.true else None


def always(asked: sympy.Basic, env: ShapeEnv) -> bool:
    """Is the answer yes for all N from 2 up?"""
    others = {s: env.var_to_range[s] for s in asked.free_symbols if s != N}  # type: ignore[index]
    answer = bound_sympy(asked, others | {N: ValueRanges(2, int_oo)})  # type: ignore[arg-type]
    return answer.is_singleton() and answer.lower == sympy.true


def is_ceiling(asked: sympy.Basic) -> bool:
    """Does a guard hold for all batches up to a size that is a kernel's limit?"""
    if not isinstance(asked, sympy.StrictLessThan | sympy.LessThan):
        return False
    limit: Any = asked.rhs
    if not limit.is_Integer or not (limit >= INDICES or limit in CEILINGS):
        return False
    slope = sympy.diff(asked.lhs, N)
    return bool(slope.is_positive) and sympy.expand(asked.lhs - slope * N) == 0


def asker(guard: ShapeGuard) -> Location | None:
    """The user's line that asked. Where capture did not note it (`fxdp.capture.patches`), torch has
    it as text, with the front of the path cut off."""
    if isinstance(guard.sloc.maybe_user_loc, Noted):
        return guard.sloc.maybe_user_loc.location
    noted = NOTED.search(guard.sloc.maybe_user_loc or "")
    if noted is None:
        return None
    known = {f for m in list(sys.modules.values()) if (f := getattr(m, "__file__", None))}
    files = [f for f in (*known, *linecache.cache) if shorten_filename(f) == noted["file"]]
    if not files or is_library(files[0]):
        return None
    return Location(files[0], int(noted["line"]), noted["function"])
