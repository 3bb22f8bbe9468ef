"""An embedding's table that is also the weight of a linear head.

Letters: n samples, t positions of the lookup, s positions of the head, d features, v rows.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import sympy
from torch import Tensor

from fxdp.forms.batch import sq_sum, weighed, wide
from fxdp.forms.outer import Outer
from fxdp.forms.scatter import Scatter
from fxdp.forms.strategy import Strategy
from fxdp.kernels.ghost import covered, inner


@dataclass(frozen=True)
class Tied:
    """The sum over n of z[n, s, v] * h[n, s, d], and of g[n, t] at the rows ids[n, t].

    Attributes:
        z: [N, S, v]
        h: [N, S, d]
        ids: [N, T] integers in 0 .. v - 1
        g: [N, T, d]
    """

    z: Tensor
    h: Tensor
    ids: Tensor
    g: Tensor
    strategies: ClassVar[tuple[Strategy, ...]] = ("instantiate", "ghost")

    @property
    def rows(self) -> int:
        return self.z.shape[-1]

    @property
    def head(self) -> Outer:
        return Outer(self.z, self.h)

    @property
    def table(self) -> Scatter:
        return Scatter(self.ids, self.g, self.rows)

    def per_sample(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N, v, d]"""
        ids = self.ids.unsqueeze(-1).expand(-1, -1, self.g.shape[-1])
        return self.head.per_sample().scatter_add(1, ids, wide(self.g))

    def sq_norm(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N] squared norms, |E + H|^2 = |E|^2 + |H|^2 + 2 <E, H>."""
        if strategy != "ghost" or self.g.is_complex():
            return sq_sum(self.per_sample())
        table, head = self.table.sq_norm("ghost"), self.head.sq_norm("ghost")
        return covered((table + head + 2 * self.cross()).clamp(min=0), self.gross())

    def gross(self) -> Tensor:
        """[N], at least the lengths of a sample's terms, added up."""
        return self.head.gross() + self.table.gross()

    def cross(self) -> Tensor:
        """[N] inner products of the two: sum_{t,s} z[n, s, ids[n, t]] (g[n, t] . h[n, s])."""
        z, h, g = wide(self.z), wide(self.h), wide(self.g)
        return inner(z.gather(2, self.ids.unsqueeze(1).expand(-1, z.shape[1], -1)), h, g)

    def total(self, factor: Tensor) -> Tensor:
        """[v, d], the sum with sample n counted factor[n] times."""
        g = weighed(self.g, factor).flatten(0, 1)
        return self.head.total(factor).index_add(0, self.ids.flatten(), g)

    def extra(self, strategy: Strategy) -> sympy.Expr:
        """Numbers that the norms need in addition to the form."""
        table = self.table.extra(strategy)
        return table + self.head.extra(strategy) if strategy == "ghost" else table

    def cost(self, strategy: Strategy) -> sympy.Expr:
        """Flops and bytes of both."""
        return self.head.cost(strategy) + self.table.cost(strategy)


def joined(forms: list[Any]) -> Any | None:
    """One form for sums of one parameter that meet element by element, if there is one."""
    if len(forms) == 1:
        return forms[0]
    heads = [f for f in forms if isinstance(f, Outer)]
    tables = [f for f in forms if isinstance(f, Scatter)]
    if len(heads) + len(tables) < len(forms):
        return None
    if not tables:
        return Outer.joined(heads)
    if not heads:
        return Scatter.joined(tables)
    head, table = Outer.joined(heads), Scatter.joined(tables)
    return Tied(head.a, head.b, table.ids, table.g) if head.a.dim() == 3 else None
