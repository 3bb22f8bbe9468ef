"""Questions about symbolic sizes.

Sizes are sympy expressions in N, the number of samples, and in whatever other sizes are
dynamic. Nothing here looks at a concrete batch size: an axis holds the samples because its
*expression* contains N, never because its size happens to equal the batch's.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import sympy
import torch

from fxdp.placement import ONE, Mixed, Shard

Shape = tuple[sympy.Expr, ...]


def expr(size: Any) -> sympy.Expr:
    """The sympy expression of an int, float, bool or their symbolic twins."""
    if isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return sympy.sympify(size.node.expr)
    return sympy.sympify(size)


def shape_of(sizes: Iterable[Any]) -> Shape:
    """The shape of a tensor as expressions."""
    return tuple(expr(s) for s in sizes)


def product(sizes: Iterable[sympy.Expr]) -> sympy.Expr:
    """The product of some sizes, 1 for none."""
    total: sympy.Expr = ONE
    for size in sizes:
        total = total * size
    return total


def quotient(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
    """a / b if it is a whole number for all sizes, else None.

    Whole means: a constant integer, or a polynomial with integer coefficients.
    """
    if b == 0:
        return None
    if a.is_Integer and b.is_Integer:
        return sympy.Integer(int(a) // int(b)) if int(a) % int(b) == 0 else None
    ratio = sympy.cancel(a / b)
    top, bottom = sympy.fraction(ratio)
    if bottom != 1:
        return None
    coefficients = sympy.expand(top).as_coefficients_dict().values()
    return ratio if all(c.is_Integer for c in coefficients) else None


def sample_axes(shape: Shape, n: sympy.Symbol) -> list[int]:
    """The axes whose size depends on the number of samples."""
    return [d for d, size in enumerate(shape) if size.has(n)]


def is_whole(shape: Shape, at: Shard, n: sympy.Symbol) -> bool:
    """Does `shape` hold all N samples on the axis that `at` names, and nowhere else?"""
    return (
        sample_axes(shape, n) == [at.dim]
        and (rest := quotient(shape[at.dim], n * at.inner)) is not None
        and not rest.has(n)
    )


def land(old: Shape, new: Shape, at: Shard, n: sympy.Symbol) -> Shard:
    """Where the samples are after a view of `old` as `new`.

    A flat index is a number in mixed radix, and the sample is one digit of it: `below`
    elements lie to its right. A view keeps the flat index, so the digit must fall whole
    into one axis of the new shape, with the same number of elements to its right.
    """
    below = at.inner * product(old[at.dim + 1 :])
    if 0 in new:
        raise Mixed("a view of a tensor with no elements has no place for the samples")
    for dim, size in enumerate(new):
        if not size.has(n):
            continue
        inner = quotient(below, product(new[dim + 1 :]))
        if inner is not None and is_whole(new, Shard(dim, inner), n):
            return Shard(dim, inner)
    raise Mixed(f"the view {show(old, n)} -> {show(new, n)} splits or merges the batch axis")


def local(value: sympy.Expr, n: sympy.Symbol) -> sympy.Expr:
    """What an expression in N is worth in the local run, where N is 1."""
    return sympy.simplify(value.subs(n, ONE))


def show(shape: Sequence[sympy.Expr], n: sympy.Symbol) -> str:
    """A shape for people, with the batch size written N."""
    return "[" + ", ".join(str(s.subs(n, sympy.Symbol("N"))) for s in shape) + "]"
