"""The text of claims: read without being run, and held against shapes."""

import pytest
import sympy

from fxdp.checker.claims import Iota, Partial, Replicate, Shard, fits, read
from fxdp.checker.ends import holds, positive

N, S = sympy.symbols("N s1", positive=True, integer=True)
SYMBOLS = {"N": N, "s1": S}
ONE = sympy.Integer(1)


def test_what_is_read() -> None:
    assert read("Shard 1 4*s1", SYMBOLS) == (Shard(1, 4 * S),)
    assert read("Partial; None; Replicate zero", SYMBOLS) == (Partial(), None, Replicate(zero=True))
    assert read("Iota 0 2 s1**2+1", SYMBOLS) == (Iota(0, ONE * 2, S**2 + 1),)


@pytest.mark.parametrize(
    "text",
    ["", "Shard", "Shard 0", "Shard x 1", "Shard 0 s2", "Iota 0 1", "Shard 0 1 1", "replicate",
     "Shard 0 exit()", "Shard 0 s1.args", "Shard 0 2**s1", "Shard 0 2**999", "Shard 0 1.5"],
)  # fmt: skip
def test_what_is_no_claim(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        read(text, SYMBOLS)


@pytest.mark.parametrize("text", ["Segment 0 s1 1", "Owner 0 s1", "Pointer 1 s1 s1", "Starts s1"])
def test_rows_of_samples_have_no_rules(text: str) -> None:
    with pytest.raises(ValueError, match="no rules for rows of samples"):
        read(text, SYMBOLS)


def test_where_samples_fit() -> None:
    assert fits(Shard(1, S), (ONE * 3, 2 * N * S), N)
    assert not fits(Shard(1, S + 1), (ONE * 3, 2 * N * S), N)
    assert not fits(Shard(0, ONE), (N, N), N)
    assert not fits(Shard(0, ONE), (N + 1,), N)
    assert not fits(Partial(), (N,), N)
    assert fits(Iota(0, S, ONE), (N * S,), N)
    assert not fits(Iota(0, ONE, ONE), (N * S,), N)


def test_questions_about_sizes() -> None:
    """Of whole numbers that are not negative."""
    m, t = sympy.symbols("m t", integer=True, nonnegative=True)
    assert holds(m + 2 >= 2)
    assert holds(sympy.Ne((m + 2) * (t + 1), 1))
    assert holds(sympy.And(m + 2 > 1, 3 * m < 4 * m + 1))
    assert not holds(sympy.Gt(m + 2, 4))
    assert not holds(sympy.Eq(sympy.Mod(m, 2), 0))
    assert not holds(sympy.Or(m > 3, m < 4))
    assert positive(m * t + 1)
    assert not positive(m * t)
    assert not positive(m - t + 1)
