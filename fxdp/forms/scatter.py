"""Rows added up at the places of ids: the gradient of an embedding.

Letters: n samples, t positions, d features, v rows of the table.
"""

from dataclasses import dataclass
from typing import ClassVar

import sympy
import torch
from torch import Tensor

from fxdp.forms.batch import has_ops, sq_sum, weighed, wide
from fxdp.forms.strategy import Strategy
from fxdp.kernels.ghost import covered
from fxdp.kernels.ghost_embedding import added_up, segment_squares
from fxdp.shapes import expr


@dataclass(frozen=True)
class Scatter:
    """The sum over n and t of g[n, t], added to row ids[n, t] of a table of zeros.

    Attributes:
        ids: [N, T] integers in 0 .. rows - 1
        g: [N, T, d]
        rows: the number of rows of the table.
    """

    ids: Tensor
    g: Tensor
    rows: int
    strategies: ClassVar[tuple[Strategy, ...]] = ("instantiate", "ghost")

    @staticmethod
    def joined(forms: "list[Scatter]") -> "Scatter":
        """Several lookups in one table: one lookup at more positions."""
        if len(forms) == 1:
            return forms[0]
        ids, g = [f.ids for f in forms], [f.g for f in forms]
        return Scatter(torch.cat(ids, dim=1), torch.cat(g, dim=1), forms[0].rows)

    def per_sample(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N, rows, d]"""
        g = wide(self.g)
        table = g.new_zeros(g.shape[0], self.rows, g.shape[-1])
        return table.scatter_add(1, self.ids.unsqueeze(-1).expand_as(g), g)

    def sq_norm(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N] squared norms; the ghost norm is that of a table with a row for each id of the
        sample (`fxdp.kernels.ghost_embedding`).
        """
        if strategy != "ghost" or self.g.is_complex():
            return sq_sum(self.per_sample())
        g = wide(self.g)
        if g.shape[1] == 1:
            return sq_sum(g)
        ops = has_ops(g)
        square = segment_squares(self.ids, g) if ops else sq_sum(added_up(self.ids, g))
        return covered(square, self.gross())

    def gross(self) -> Tensor:
        """[N], the lengths of a sample's terms, added up."""
        return torch.linalg.vector_norm(wide(self.g), dim=2).sum(1)

    def total(self, factor: Tensor) -> Tensor:
        """[rows, d], the sum with sample n counted factor[n] times."""
        g = weighed(self.g, factor).flatten(0, 1)
        return g.new_zeros(self.rows, g.shape[-1]).index_add(0, self.ids.flatten(), g)

    def extra(self, strategy: Strategy) -> sympy.Expr:
        """Numbers that the norms need in addition to the form."""
        n, t, d = (expr(s) for s in self.g.shape)
        return n * d * (t if strategy == "ghost" else expr(self.rows))

    def cost(self, strategy: Strategy) -> sympy.Expr:
        """Flops and bytes: a table for each sample, of T rows behind a sort, or of all."""
        n, t, d = (expr(s) for s in self.g.shape)
        if strategy == "ghost":
            return n * t * (24 * d + 400)  # sorting a position costs as much as some numbers
        return n * (12 * expr(self.rows) * d + 4 * t * d)
