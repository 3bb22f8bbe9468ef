"""The sum of outer products: every linear layer's weight.

Letters: n samples, t positions, i and o the two axes of the weight. Leading axes between n and
t (the batch of a `bmm`) are weights of their own.
"""

from dataclasses import dataclass
from typing import ClassVar

import sympy
import torch
from torch import Tensor

from fxdp.forms.batch import (
    as_taken,
    has_halves,
    has_ops,
    has_products,
    muted,
    one_each,
    sq_sum,
    weighed,
    wide,
)
from fxdp.forms.strategy import Strategy
from fxdp.kernels.clipped_sum import weighed_outer
from fxdp.kernels.each_outer import each_outer
from fxdp.kernels.ghost import ghost_outer, ghost_whole, underflow
from fxdp.kernels.loops import loop_outer
from fxdp.shapes import expr, product


@dataclass(frozen=True)
class Outer:
    """The sum over n and t of a[n, ..., t, i] * b[n, ..., t, o].

    Attributes:
        a: [N, ..., T, i]
        b: [N, ..., T, o]
    """

    a: Tensor
    b: Tensor
    strategies: ClassVar[tuple[Strategy, ...]] = (
        "instantiate", "ghost", "stream", "naive", "multi",
    )  # fmt: skip

    @staticmethod
    def joined(forms: "list[Outer]") -> "Outer":
        """Several uses of one weight: the same sum over more positions."""
        if len(forms) == 1:
            return forms[0]
        return Outer(
            torch.cat([f.a for f in forms], dim=-2), torch.cat([f.b for f in forms], dim=-2)
        )

    def transposed(self) -> "Outer":
        """The same sum with i and o exchanged."""
        return Outer(self.b, self.a)

    def per_sample(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N, ..., i, o]"""
        if self.a.dim() == 3 and has_halves(self.a, self.b):
            own = loop_outer if strategy == "naive" else each_outer
            return own(self.a, self.b)
        a, b = wide(self.a), wide(self.b)
        if a.dim() > 3:
            return torch.einsum("ngti,ngto->ngio", a.flatten(1, -3), b.flatten(1, -3)).reshape(
                *a.shape[:-2], a.shape[-1], b.shape[-1]
            )
        match strategy:
            case "naive":
                return loop_outer(a, b)
            case "multi":
                return torch.vmap(lambda x, y: x.transpose(-2, -1) @ y)(a, b)
            case _ if a.shape[1] == 1:
                return torch.einsum("ni,no->nio", a.squeeze(1), b.squeeze(1))
            case _:
                return torch.einsum("nti,nto->nio", a, b)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the sum of a form without leading axes."""
        return int(self.a.shape[-1]), int(self.b.shape[-1])

    @property
    def streams(self) -> bool:
        """Can `write` make its per-sample gradients?"""
        return self.a.dim() == 3 and has_ops(self.a, self.b)

    def write(self, room: Tensor) -> Tensor:
        """[m, i, o], in memory that is there."""
        return torch.bmm(wide(self.a).mT, wide(self.b), out=room)

    def sq_norm(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N] squared norms.

        Ghost norm (Li et al., arXiv:2110.05679, eq. 4): the squared norm of sum_t a_t b_t^T is
        sum_{t,s} (a_t . a_s) (b_t . b_s); with one position, the product of two squared norms
        (Goodfellow, arXiv:1510.01799).
        """
        if strategy != "ghost" or self.a.is_complex():
            return sq_sum(self.per_sample(strategy))
        one, halves = self.a.shape[-2] == 1, has_halves(self.a, self.b)
        if self.a.dim() == 3 and (halves or not one) and has_products(self.a, self.b):
            return ghost_outer(*as_taken(self.a, self.b))
        a, b = wide(self.a), wide(self.b)
        if one:
            # Axes from the front: torch 2.11 traces a wrong shape where one of size 1 is negative.
            lengths = [torch.linalg.vector_norm(x, dim=(x.dim() - 2, x.dim() - 1)) for x in (a, b)]
            lost = underflow(lengths[0], lengths[1], (a.shape[-1], b.shape[-1]), 1)
            return one_each((lengths[0] * lengths[1]).square() + lost)
        return one_each(ghost_whole(a, b))

    def gross(self) -> Tensor:
        """[N], at least the lengths of a sample's terms, added up."""
        a, b = (torch.linalg.vector_norm(wide(x), dim=x.dim() - 1) for x in (self.a, self.b))
        return torch.linalg.vector_norm((a * b).sum(-1).unsqueeze(-1).flatten(1), dim=1)

    def total(self, factor: Tensor) -> Tensor:
        """[..., i, o], the sum with sample n counted factor[n] times: book-keeping's GEMM."""
        if self.a.dim() == 3 and has_products(self.a, self.b):
            return weighed_outer(*as_taken(self.a, self.b), factor)
        a, b = muted(self.a, factor), weighed(self.b, factor)
        if a.dim() > 3:
            return torch.einsum("n...ti,n...to->...io", a, b)
        return a.flatten(0, 1).transpose(-2, -1) @ b.flatten(0, 1)

    def extra(self, strategy: Strategy) -> sympy.Expr:
        """Numbers that the norms need in addition to the form."""
        *lead, t, i = (expr(s) for s in self.a.shape)
        if strategy == "ghost":
            return 2 * product(lead) * t * t if t != 1 else sympy.Integer(0)
        if strategy == "stream":
            return i * expr(self.b.shape[-1])  # of one sample, at least
        return product(lead) * i * expr(self.b.shape[-1])

    def cost(self, strategy: Strategy) -> sympy.Expr:
        """Flops for the norms and what comes after them, a byte moved counted as a flop."""
        *lead, t, i = (expr(s) for s in self.a.shape)
        o, batch = expr(self.b.shape[-1]), product(lead)
        if strategy == "ghost" and t == 1:
            return batch * (2 * (i + o) + 2 * i * o)
        if strategy == "ghost":
            return batch * (2 * t * t * (i + o) + 10 * t * t + 2 * t * i * o)
        return batch * (2 * t * i * o + (4 if strategy == "stream" else 12) * i * o)
