"""Calls of ops with every claim that their operands and results can have."""

import itertools
from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch.utils import _pytree as pytree

from fxdp.checker.call import Call, Operand
from fxdp.checker.claims import Claim, Claims, Partial, Replicate, Shape, Shard, fits

N = sympy.Symbol("N", positive=True, integer=True)
ONE = sympy.Integer(1)


class T:
    """A tensor by its shape, in which N may stand.

    Args:
        ids, mask: integers, or truth values, instead of reals.
    """

    def __init__(self, *shape: Any, ids: bool = False, mask: bool = False) -> None:
        self.shape: Shape = tuple(sympy.sympify(s) for s in shape)
        self.dtype = torch.int64 if ids else torch.bool if mask else torch.float64

    def meta(self, n: int) -> torch.Tensor:
        return torch.empty([int(s.subs(N, n)) for s in self.shape], dtype=self.dtype, device="meta")


def claims_of(shape: Shape | None) -> list[Claim | None]:
    """All that may be claimed of a shape."""
    if shape is None:
        return [None]
    found: list[Claim] = [Replicate(), Replicate(zero=True), Partial(), Partial(public=True)]
    for dim, size in enumerate(shape):
        local = int(size.subs(N, 1))
        found += [Shard(dim, sympy.Integer(q)) for q in range(1, local + 1) if local % q == 0]
    return [c for c in found if fits(c, shape, N)]


def shapes_of(op: Any, args: Any, kwargs: Any) -> tuple[Shape | None, ...]:
    """The results' shapes in N, from those for two numbers of samples."""

    def ran(n: int) -> list[Any]:
        def real(x: Any) -> Any:
            return x.meta(n) if isinstance(x, T) else int(x.subs(N, n))

        own = pytree.tree_map_only((T, sympy.Expr), real, (args, kwargs))
        out = op(*own[0], **own[1])
        return list(out) if isinstance(out, tuple | list) else [out]

    found: list[Shape | None] = []
    for two, three in zip(ran(20), ran(30), strict=True):
        if not isinstance(two, torch.Tensor):
            found.append(None)
            continue
        slopes = [sympy.Rational(b - a, 10) for a, b in zip(two.shape, three.shape, strict=True)]
        sizes = [k * N + a - 20 * k for k, a in zip(slopes, two.shape, strict=True)]
        found.append(tuple(sympy.expand(s) for s in sizes))
    return tuple(found)


def calls(op: Any, *args: Any, **kwargs: Any) -> Iterator[tuple[Call, Claims]]:
    """Every combination of claims."""
    shapes = shapes_of(op, args, kwargs)
    flat, spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda x: isinstance(x, T))
    options: list[list[Any]] = [
        [Operand(c, x.shape, x.dtype) for c in claims_of(x.shape) if c is not None]
        if isinstance(x, T)
        else [x]
        for x in flat
    ]
    for chosen in itertools.product(*options):
        own_args, own_kwargs = pytree.tree_unflatten(list(chosen), spec)
        schema = op._schema.arguments
        named = {a.name: a.default_value for a in schema}
        named |= dict(zip((a.name for a in schema), own_args, strict=False)) | own_kwargs
        call = Call(op, tuple(own_args), own_kwargs, named, shapes, N)
        for claims in itertools.product(*map(claims_of, shapes)):
            yield call, claims
