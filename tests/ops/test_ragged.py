"""Rules where rows meet samples: what they claim is held against a run for each sample alone, at
every placement of their operands."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxdp.ops import RULES
from fxdp.placement import Mixed, Owner, Partial, Pointer, Replicate, Segment, Shard, Starts
from fxdp.proof.placing import SIZES
from fxdp.proof.ragged import fits, place_rows
from fxdp.rules import Call, Value
from fxdp.shapes import is_whole, sample_axes

aten = torch.ops.aten
N, R, E = sympy.symbols("N R E", integer=True, positive=True)
# Rows of each sample, and edges; no size is another's, so that each is known by its number.
COUNTS = {R: (2, 0, 5), E: (4, 0, 1)}
SIZE = {3: N, 7: R, 5: E}
DICE = torch.Generator().manual_seed(0)
OWNERS = {
    rows: torch.arange(3).repeat_interleave(torch.tensor(c))[torch.randperm(sum(c), generator=DICE)]
    for rows, c in COUNTS.items()
}
# The first row of each sample among those that lie one after the other.
BEGINS = torch.tensor(COUNTS[R]).cumsum(0) - torch.tensor(COUNTS[R])


@dataclass(frozen=True)
class T:
    """An operand: its batch, its part in each local run, and where it has its samples."""

    value: Tensor
    local: tuple[Tensor, ...]
    at: Any


def spots(rows: sympy.Symbol, sample: int) -> Tensor:
    """The numbers of a sample's rows."""
    return (OWNERS[rows] == sample).nonzero().flatten()


def drawn(shape: tuple[int, ...], high: int) -> Tensor:
    if high:
        return torch.randint(high, shape, generator=DICE)
    return torch.randn(shape, generator=DICE, dtype=torch.float64)


def shared(*shape: int, high: int = 0) -> T:
    x = drawn(shape, high)
    return T(x, (x,) * 3, Replicate())


def zeros(*shape: int) -> T:
    x = torch.zeros(shape, dtype=torch.float64)
    return T(x, (x,) * 3, Replicate(zero=True))


def samples(*shape: int, high: int = 0) -> T:
    """3 on axis 0."""
    x = drawn((3, *shape), high)
    return T(x, tuple(x[i : i + 1] for i in range(3)), Shard(0))


def rows(of: sympy.Symbol, *shape: int, high: int = 0, sort: bool = False) -> T:
    """Rows on axis 0; sorted by their samples, if offsets are to cut them."""
    x = drawn((sum(COUNTS[of]), *shape), high)
    own = x.split(COUNTS[of]) if sort else [x[spots(of, i)] for i in range(3)]
    return T(x, tuple(own), Segment(0, of))


def owner(of: sympy.Symbol, wide: int = 0) -> T:
    """[R] or [R, wide]"""
    x = OWNERS[of]
    x = x[:, None].expand(-1, wide) if wide else x
    return T(x, tuple(torch.zeros_like(x[spots(of, i)]) for i in range(3)), Owner(0, of))


def pointer(wide: int = 0) -> T:
    """[E] or [E, wide], into R."""
    x = torch.zeros(5, wide or 1, dtype=torch.int64)
    local: list[Tensor] = []
    for i in range(3):
        own = drawn((COUNTS[E][i], wide or 1), COUNTS[R][i] or 1)
        x[spots(E, i)] = spots(R, i)[own] if len(spots(R, i)) else own
        local.append(own if wide else own[:, 0])
    return T(x if wide else x[:, 0], tuple(local), Pointer(0, E, R))


def starts() -> T:
    return T(BEGINS, (torch.zeros(1, dtype=torch.int64),) * 3, Starts(R))


FLOATS: tuple[Callable[[], T], ...] = (
    lambda: shared(2, 4), lambda: zeros(2, 4), lambda: samples(4), lambda: rows(R, 4),
    lambda: rows(E, 4),
)  # fmt: skip
INDICES: tuple[Callable[[], T], ...] = (
    lambda: shared(2, high=1), lambda: owner(R), lambda: owner(E), pointer,
    lambda: rows(R, high=1), lambda: rows(E, high=1), lambda: samples(high=1),
)  # fmt: skip
WIDE: tuple[Callable[[], T], ...] = (
    lambda: owner(R, 4), lambda: owner(E, 4), lambda: pointer(4), lambda: rows(R, 4, high=1),
    lambda: samples(4, high=1),
)  # fmt: skip
IDS = (lambda: rows(R, high=6, sort=True), lambda: rows(E, high=6), lambda: samples(high=6))
PLACES = (starts, lambda: owner(R), lambda: samples(high=1))
SCALES = (lambda: None, lambda: rows(R, sort=True), lambda: rows(E))
TABLE = (lambda: shared(6, 4),)

# An op's arguments, with the operands that are tried for each; and how many claims it makes.
CASES: dict[str, tuple[Any, tuple[Any, ...], int]] = {
    "index": (aten.index.Tensor, (FLOATS, [INDICES]), 7),
    "index of another axis": (
        aten.index.Tensor, ((lambda: shared(2, 4), lambda: rows(R, 4)), [None, INDICES]), 3,
    ),
    "index of owners": (aten.index.Tensor, ((lambda: owner(R), pointer), [INDICES]), 1),
    "index_select": (aten.index_select.default, (FLOATS, 0, INDICES), 7),
    "gather": (aten.gather.default, (FLOATS, 0, WIDE), 5),
    "index_put": (aten.index_put.default, (FLOATS, [INDICES], FLOATS, True), 5),
    "index_put once": (aten.index_put.default, (FLOATS, [INDICES], FLOATS, False), 0),
    "index_add": (aten.index_add.default, (FLOATS, 0, INDICES, FLOATS), 5),
    "scatter_add": (aten.scatter_add.default, (FLOATS, 0, WIDE, FLOATS), 4),
    "scatter_reduce": (aten.scatter_reduce.two, (FLOATS, 0, WIDE, FLOATS, "amax"), 3),
    "bag": (
        aten._embedding_bag.default, (TABLE, IDS, PLACES, False, 0, False, SCALES, False, -1), 2,
    ),
    "mean bag": (
        aten._embedding_bag.default, (TABLE, IDS, PLACES, False, 1, False, None, False, 2), 1,
    ),
    "max bag": (
        aten._embedding_bag.default, (TABLE, IDS, PLACES, False, 2, False, None, False, -1), 1,
    ),
    "expand": (aten.expand.default, ((lambda: owner(R, 1), lambda: pointer(1)), [-1, 2]), 2),
    "select": (aten.select.int, ((lambda: owner(R, 4), lambda: pointer(4)), 1, 0), 2),
    "flip": (aten.flip.default, ((lambda: owner(R, 4), lambda: pointer(4)), [1]), 2),
    "flip of rows": (aten.flip.default, ((lambda: owner(R), pointer, lambda: rows(R, 4)), [0]), 0),
    "neg": (aten.neg.default, ((lambda: owner(R), pointer, starts), ), 0),
    "add": (aten.add.Tensor, (FLOATS, FLOATS), 2),
    "cast": (aten._to_copy.default, ((lambda: owner(R), pointer, starts), ), 2),
    "sum": (aten.sum.dim_IntList, (FLOATS[3:], [0]), 2),
    "softmax": (aten._softmax.default, (FLOATS[3:], 1, False), 2),
}  # fmt: skip


def options(args: Any) -> list[Any]:
    """The arguments with an operand in each place, at every choice."""
    flat, spec = pytree.tree_flatten(
        args, is_leaf=lambda a: isinstance(a, tuple) and a is not args and callable(a[0])
    )
    choices = [a if isinstance(a, tuple) else (lambda a=a: a,) for a in flat]
    return [
        pytree.tree_unflatten([make() for make in picked], spec)
        for picked in itertools.product(*choices)
    ]


def of(args: Any, what: Callable[[T], Any]) -> Any:
    return pytree.tree_map_only(T, what, args)


def symbols(x: Tensor) -> tuple[sympy.Expr, ...]:
    return tuple(SIZE.get(s, sympy.Integer(s)) for s in x.shape)


def part(x: Tensor, at: Any, sample: int, sort: bool) -> Tensor:
    """A sample's part of a result."""
    if isinstance(at, Shard):
        return x.narrow(at.dim, sample, 1)
    if sort:
        return x.split(COUNTS[R], at.dim)[sample]
    return x.index_select(at.dim, spots(at.rows, sample))


def is_true(claim: Any, got: Tensor, local: list[Tensor], sort: bool) -> bool:
    """Is a claim true of a result?"""
    match claim:
        case Replicate():
            return all(torch.allclose(got, own) for own in local)
        case Partial():
            return torch.allclose(got, sum(local))  # type: ignore[arg-type]
        case Owner(dim, of_rows):
            own = torch.arange(3).repeat_interleave(torch.tensor(COUNTS[R])) if sort else None
            shape = [-1 if d == dim else 1 for d in range(got.dim())]
            return bool((got == (OWNERS[of_rows] if own is None else own).reshape(shape)).all())
        case Pointer(dim, of_rows, to):
            pairs = [(part(got, claim, i, sort), own) for i, own in enumerate(local)]
            return all(
                torch.equal(mine, spots(to, i)[own] if own.numel() else own)
                for i, (mine, own) in enumerate(pairs)
            )
        case _:
            pairs = [(part(got, claim, i, sort), own) for i, own in enumerate(local)]
            return all(a.shape == b.shape and torch.allclose(a, b) for a, b in pairs)


def fitting(shape: Any, at: Any) -> bool:
    """Is a claim one that the proof believes, by the shape?"""
    if isinstance(at, Segment | Owner | Pointer):
        return fits(shape, at, (N, R, E))
    if any(sample_axes(shape, s) for s in (R, E)):
        return False
    return is_whole(shape, at, N) if isinstance(at, Shard) else not sample_axes(shape, N)


@pytest.mark.parametrize("name", CASES)
def test_claims_are_true(name: str) -> None:
    op, given, wanted = CASES[name]
    found = 0
    for args in options(given):
        operands = [a for a in pytree.tree_leaves(args) if isinstance(a, T)]
        try:
            got = op(*of(args, lambda t: t.value))
            local = [op(*of(args, lambda t, i=i: t.local[i])) for i in range(3)]
        except (RuntimeError, IndexError):
            continue  # the operands do not fit together
        several = isinstance(got, tuple)
        results = list(got) if several else [got]
        values = of(args, lambda t: Value(t.at, symbols(t.value), t.value.dtype))
        named = dict(zip((a.name for a in op._schema.arguments), values, strict=False))
        call = Call(tuple(symbols(x) for x in results), N, False)
        try:
            placed = place_rows(RULES[op], call, {R: None, E: None}, SIZES, named, values, {})
        except Mixed:
            continue
        claims = list(placed) if several else [placed]
        if not all(fitting(symbols(x), at) for x, at in zip(results, claims, strict=True)):
            continue
        found += 1
        sort = any(isinstance(t.at, Starts) for t in operands)
        for k, (claim, result) in enumerate(zip(claims, results, strict=True)):
            own = [each[k] if several else each for each in local]
            assert is_true(claim, result, own, sort), (name, k, [t.at for t in operands], claim)
    assert found == wanted
