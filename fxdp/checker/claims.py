"""What a certificate claims of a value, and how its text is read.

Let v be a value of the captured graph, and v_i what the same node gives in the *local run* of
sample i, in which the batch is that sample alone and N, the number of samples, is 1.

    Replicate          v = v_i for every i. "Replicate zero": every element is 0.
    Shard d q          axis d of v has size k N q, index j belongs to sample (j // q) % N, and the
                       slices of sample i, in order, are v_i.
    Partial            v is the sum of the v_i; "Partial public": up to a term without samples,
                       which v and each v_i have once.
    Iota d q s         v counts samples: s (j // q) at index j of axis d, which has size N q.

A *total* is a Partial without axes. Where samples read a total, or the number N as an element, fxdp
hands them v_i, each its own; and where a total is a gradient, it adds up the v_i. The graph that a
certificate speaks of is the captured one with this change. So a total need not be the sum of its
v_i where it is made of totals alone, as a loss that is divided by the number of valid targets.
"""

import ast
import re
from dataclasses import dataclass
from typing import Any

import sympy

Shape = tuple[sympy.Expr, ...]


@dataclass(frozen=True)
class Replicate:
    """One for all samples."""

    zero: bool = False


@dataclass(frozen=True)
class Shard:
    """A slice for each sample."""

    dim: int
    inner: sympy.Expr


@dataclass(frozen=True)
class Partial:
    """A sum over samples."""

    public: bool = False


@dataclass(frozen=True)
class Iota:
    """The numbers of the samples."""

    dim: int
    inner: sympy.Expr
    step: sympy.Expr


Claim = Replicate | Shard | Partial | Iota
Claims = tuple[Claim | None, ...]  # one for each result; None for what is no tensor
WORDS: dict[str, Claim | None] = {
    "Replicate": Replicate(),
    "Replicate zero": Replicate(zero=True),
    "Partial": Partial(),
    "Partial public": Partial(public=True),
    "None": None,
}
ROWS = ("Segment ", "Owner ", "Pointer ", "Starts ")  # of values that hold rows of samples
HOLDS = re.compile(r"(Shard|Iota) (\d+) (\S+)(?: (\S+))?")


def read(text: str, symbols: dict[str, sympy.Symbol]) -> Claims:
    """The claims of a node's results. Nothing of the text is run.

    Args:
        symbols: torch's symbols by the names that a certificate has for them.

    Raises:
        ValueError: the text is no claim.
    """
    return tuple(one(part, symbols) for part in text.split("; "))


def one(text: str, symbols: dict[str, sympy.Symbol]) -> Claim | None:
    """The claim of one result."""
    if text in WORDS:
        return WORDS[text]
    found = HOLDS.fullmatch(text)
    if found is None or (found[1] == "Iota") != (found[4] is not None):
        if text.startswith(ROWS):
            raise ValueError("the checker has no rules for rows of samples (fxdp.Ragged)")
        raise ValueError(f"{text!r} is no placement")
    dim, inner = int(found[2]), size(found[3], symbols)
    return Shard(dim, inner) if found[4] is None else Iota(dim, inner, size(found[4], symbols))


def size(text: str, symbols: dict[str, sympy.Symbol]) -> sympy.Expr:
    """A size: integers and symbols, added, multiplied, and to whole powers."""

    def of(node: ast.expr) -> Any:
        match node:
            case ast.Constant(int(value)):
                return sympy.Integer(value)
            case ast.Name(name) if name in symbols:
                return symbols[name]
            case ast.UnaryOp(ast.USub(), x):
                return -of(x)
            case ast.BinOp(x, ast.Add(), y):
                return of(x) + of(y)
            case ast.BinOp(x, ast.Sub(), y):
                return of(x) - of(y)
            case ast.BinOp(x, ast.Mult(), y):
                return of(x) * of(y)
            case ast.BinOp(x, ast.Pow(), ast.Constant(int(y))) if 0 <= y <= 8:
                return of(x) ** y
            case _:
                raise ValueError(f"{text!r} is no size")

    try:
        return of(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no size") from error


def fits(claim: Claim, shape: Shape, n: sympy.Symbol) -> bool:
    """Does N stand in a shape where a claim says, and nowhere else?"""
    axes = [d for d, s in enumerate(shape) if s.has(n)]
    match claim:
        case Shard(dim, inner):
            return axes == [dim] and not inner.has(n) and outer(shape[dim], inner, n) is not None
        case Iota(dim, inner, step):
            own = axes == [dim] and not (inner.has(n) or step.has(n))
            return own and equal(shape[dim], n * inner)
        case _:
            return not axes


def outer(size: sympy.Expr, inner: sympy.Expr, n: sympy.Symbol) -> sympy.Expr | None:
    """k in size = k N inner, where that is a polynomial with whole coefficients and without N."""
    if inner == 0:
        return None
    k = sympy.cancel(size / (n * inner))
    top, bottom = sympy.fraction(k)
    whole = all(c.is_Integer for c in sympy.expand(top).as_coefficients_dict().values())
    return k if bottom == 1 and whole and not k.has(n) else None


def equal(a: Any, b: Any) -> bool:
    """Are two sizes the same, whatever the symbols stand for?"""
    return sympy.expand(sympy.sympify(a) - sympy.sympify(b)) == 0
