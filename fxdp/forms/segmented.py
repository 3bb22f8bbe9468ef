"""Sums over rows, of which each sample has as many as it likes.

Letters: r rows, n samples.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import sympy
from torch import Tensor

from fxdp.forms.batch import sq_sum
from fxdp.forms.strategy import Strategy
from fxdp.shapes import expr


@dataclass(frozen=True)
class Segmented:
    """The sum of another form's terms, one for each row, which belong to samples.

    Attributes:
        each: the form of the rows.
        owner: int64 [R], the sample that each row belongs to.
        n: the number of samples.
    """

    each: Any
    owner: Tensor
    n: Any
    strategies: ClassVar[tuple[Strategy, ...]] = ("instantiate",)

    def per_sample(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N, *shape], a sample's rows added up; 0 for a sample without rows."""
        rows = self.each.per_sample()
        return rows.new_zeros(self.n, *rows.shape[1:]).index_add(0, self.owner, rows)

    def sq_norm(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N] squared norms."""
        return sq_sum(self.per_sample())

    def gross(self) -> Tensor:
        """[N], at least the lengths of the terms of a sample's rows, added up."""
        rows = self.each.gross()
        return rows.new_zeros(self.n).index_add(0, self.owner, rows)

    def total(self, factor: Tensor) -> Tensor:
        """[*shape], the sum with the rows of sample n counted factor[n] times."""
        return self.each.total(factor.index_select(0, self.owner))

    def extra(self, strategy: Strategy) -> sympy.Expr:
        """Numbers that the norms need in addition to the form: those of rows and samples."""
        rows = self.each.extra("instantiate")
        return rows + rows * expr(self.n) / expr(self.owner.shape[0])

    def cost(self, strategy: Strategy) -> sympy.Expr:
        """That of the rows, and of adding them up."""
        return self.each.cost("instantiate") + 2 * self.each.extra("instantiate")
