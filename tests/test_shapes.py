"""Views as digits of a number: `land` and `quotient` against brute force."""

import math

import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxdp.placement import Mixed, Shard
from fxdp.shapes import is_whole, land, quotient
from tests.forms.loops import QUICK

N = sympy.Symbol("N", positive=True, integer=True)
size = st.integers(1, 4)


@st.composite
def views(draw: st.DrawFn) -> tuple[list[sympy.Expr], list[sympy.Expr], Shard]:
    """A shape with N on one axis, another of as many elements, and where the samples are."""
    sizes = draw(st.lists(size, min_size=1, max_size=4))
    dim = draw(st.integers(0, len(sizes) - 1))
    inner = draw(st.sampled_from([i for i in range(1, 5) if sizes[dim] % i == 0]))
    old = [sympy.Integer(s) for s in sizes]
    old[dim] *= N
    digits = [p for s in sizes for p in sympy.factorint(s, multiple=True)] + [N]
    digits = draw(st.permutations(digits)) if draw(st.booleans()) else digits
    cuts = sorted(draw(st.lists(st.integers(0, len(digits)), max_size=3)))
    bounds = [0, *cuts, len(digits)]
    new = [sympy.sympify(sympy.prod(digits[a:b])) for a, b in zip(bounds, bounds[1:], strict=False)]
    return old, new, Shard(dim, sympy.Integer(inner))


def concrete(shape: list[sympy.Expr], n: int) -> list[int]:
    return [int(s.subs(N, n)) for s in shape]


def owners(shape: list[int], at: Shard, n: int) -> torch.Tensor:
    """Whose element each is, by the definition of `Shard`."""
    own = torch.arange(shape[at.dim]) // int(at.inner) % n
    return own.reshape(-1, *[1] * (len(shape) - at.dim - 1)).expand(shape)


def is_true(old: list[sympy.Expr], new: list[sympy.Expr], at: Shard, there: Shard, n: int) -> bool:
    seen = owners(concrete(old, n), at, n).reshape(concrete(new, n))
    return torch.equal(seen, owners(concrete(new, n), there, n))


@QUICK
@given(views())
def test_where_samples_land(view: tuple[list[sympy.Expr], list[sympy.Expr], Shard]) -> None:
    """What is claimed is true for all N; what is refused, no `Shard` describes."""
    old, new, at = view
    try:
        there = land(tuple(old), tuple(new), at, N)
    except Mixed:
        for dim, s in enumerate(new):
            for inner in range(1, math.prod(concrete(new, 1)) + 1):
                other = Shard(dim, sympy.Integer(inner))
                whole = is_whole(tuple(new), other, N)
                assert not (whole and all(is_true(old, new, at, other, n) for n in (2, 3, 5))), s
        return
    assert all(is_true(old, new, at, there, n) for n in (2, 3, 4, 5))


A, B = sympy.symbols("A B", positive=True, integer=True)
monomials = st.builds(
    lambda c, powers: c * N ** powers[0] * A ** powers[1] * B ** powers[2],
    st.integers(1, 12),
    st.tuples(*[st.integers(0, 2)] * 3),
)
polynomials = st.lists(monomials, min_size=1, max_size=3).map(sum)


@QUICK
@given(polynomials, polynomials)
def test_quotients_are_whole(a: sympy.Expr, b: sympy.Expr) -> None:
    a, b = sympy.sympify(a), sympy.sympify(b)
    assert sympy.expand(quotient(sympy.expand(a * b), b) - a) == 0
    found = quotient(a, b)
    at = [{N: 2, A: 3, B: 5}, {N: 7, A: 2, B: 3}, {N: 5, A: 11, B: 4}]
    if found is not None:
        assert all(found.subs(v) * b.subs(v) == a.subs(v) for v in at)
    elif len(sympy.Add.make_args(b)) == 1 and len(sympy.Add.make_args(a)) == 1:
        # A ratio of monomials that is whole at primes of its own is whole at all.
        own = {N: 101, A: 103, B: 107}
        assert a.subs(own) % b.subs(own) != 0


def test_nothing_divides_by_zero() -> None:
    assert quotient(N, sympy.Integer(0)) is None
