"""A captured program must be the same program for every number of samples.

Capture follows the Python of a model with one batch in hand. Where that Python, or an op, asks
about a size (`if len(x) > 4`, `x.view(8, -1)`), torch goes on with the answer for this batch and
notes the question as a guard. A guard on the number of samples N that not every N from 2 up
meets says that other batches would run another program, which nothing was proven of: adding
one sample could change what is released for all the others.
"""

import linecache
import re
import sys

import sympy
from torch import SymInt, Tensor
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv, ShapeGuard
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy
from torch.utils._traceback import shorten_filename

from fxdp.diagnostic import (
    CODES,
    BatchMixingError,
    CaptureError,
    Diagnostic,
    Location,
    is_library,
    locate,
)

N = sympy.Symbol("N", integer=True, positive=True)
NOTED = re.compile(r"# (?P<file>\S+):(?P<line>\d+) in (?P<function>\S+)$")
# torch asks for the size of a batch to choose among its convolution kernels, which compute the
# same: (file, function) that asks.
HARMLESS = {("fake_impls.py", "conv")}


def refuse_other_programs(gm: GraphModule, mask: Tensor) -> None:
    """Refuse a captured graph that holds for some numbers of samples only.

    Args:
        gm: the graph.
        mask: its fake tensor of shape [N].

    Raises:
        CaptureError: the program needs one certain N.
        BatchMixingError: the program depends on N.
    """
    env: ShapeEnv = mask.fake_mode.shape_env  # type: ignore[attr-defined]
    size = mask.shape[0]
    own = env.simplify(size.node.expr) if isinstance(size, SymInt) else sympy.Integer(size)
    asked = [g for g in env.guards if about(g, own, env)]
    if own.is_Integer:
        where = next((w for g in asked if (w := asker(gm, g)) is not None), None)
        raise CaptureError(
            Diagnostic(
                CODES["fixed-batch-size"], where, "forward",
                f"the program works for batches of {own} samples only",
                CODES["fixed-batch-size"].remedy,
            )
        )  # fmt: skip
    code = CODES["depends-on-batch-size"]
    found = {
        Diagnostic(code, asker(gm, g), "forward", f"what is computed depends on whether {e}", code.remedy)
        for g in asked
        if (e := open_question(g, own, env)) is not None
    }
    if found:
        raise BatchMixingError(*sorted(found, key=str))


def same(symbol: sympy.Basic, own: sympy.Expr, env: ShapeEnv) -> bool:
    """Is this symbol another name of N? Of a fixed N all names are the fixed number."""
    return symbol == own or env.simplify(symbol) == own  # type: ignore[arg-type]


def about(guard: ShapeGuard, own: sympy.Expr, env: ShapeEnv) -> bool:
    """Does a guard ask about N, other than whether two tensors have the same N?"""
    symbols = guard.expr.free_symbols
    names = {s for s in symbols if same(s, own, env)}
    asker = guard.sloc.framework_loc
    file, function = getattr(asker, "filename", ""), getattr(asker, "name", "")
    if any(file.endswith(f) and function == name for f, name in HARMLESS):
        return False
    return bool(names) and guard.expr.subs(dict.fromkeys(names, N)) != sympy.true


def open_question(guard: ShapeGuard, own: sympy.Expr, env: ShapeEnv) -> sympy.Basic | None:
    """The guard, with N in it, if not every N from 2 up meets it."""
    names = {s for s in guard.expr.free_symbols if same(s, own, env)}
    asked = guard.expr.subs(dict.fromkeys(names, N))
    ranges = {s: env.var_to_range[s] for s in asked.free_symbols if s != N}
    answer = bound_sympy(asked, ranges | {N: ValueRanges(2, int_oo)})
    return None if answer.is_singleton() and answer.lower == sympy.true else asked


def asker(gm: GraphModule, guard: ShapeGuard) -> Location | None:
    """The user's line that asked; torch keeps it as text, with the front of the path cut off."""
    noted = NOTED.search(guard.sloc.maybe_user_loc or "")
    if noted is None:
        return None
    line, function = int(noted["line"]), noted["function"]
    known = {f for m in list(sys.modules.values()) if (f := getattr(m, "__file__", None))}
    files = [f for f in (*known, *linecache.cache) if shorten_filename(f) == noted["file"]]
    if files and not is_library(files[0]):
        return Location(files[0], line, function)
    frame = f'{noted["file"]}", line {line}, in {function}\n'
    traces = (n.stack_trace for n in gm.graph.nodes)
    return locate(next((t for t in traces if t and frame in t), None))
