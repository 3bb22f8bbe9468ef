"""The plain sum over samples: biases, scales of norm layers, broadcast parameters."""

from dataclasses import dataclass
from typing import ClassVar

import sympy
from torch import Tensor

from fxdp.forms.batch import HALVES, sq_sum, summed
from fxdp.forms.strategy import Strategy
from fxdp.shapes import expr, product

# Inductor may measure a number in half precision before it rounds it, and sum it afterwards: in a
# fused kernel it leaves out a cast and the cast back. Rounding to bfloat16 adds a part in 256.
UNROUNDED = (1 + 2.0**-8) ** 2


@dataclass(frozen=True)
class Reduce:
    """The sum of x[n, ...] over n.

    Attributes:
        x: [N, *shape], each sample's share.
    """

    x: Tensor
    strategies: ClassVar[tuple[Strategy, ...]] = ("instantiate",)

    def per_sample(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N, *shape]"""
        return self.x

    def sq_norm(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N] squared norms; in half precision of what is summed, however it is rounded."""
        sizes = sq_sum(self.x)
        return sizes * UNROUNDED if self.x.dtype in HALVES else sizes

    def gross(self) -> Tensor:
        """[N], the length of a sample's only term."""
        return sq_sum(self.x).sqrt()

    def total(self, factor: Tensor) -> Tensor:
        """[*shape], the sum of factor[n] * x[n]."""
        return summed(self.x, factor)

    def extra(self, strategy: Strategy) -> sympy.Expr:
        """Numbers that the norms need in addition to the form: 0, as it is the gradients."""
        return sympy.Integer(0)

    def cost(self, strategy: Strategy) -> sympy.Expr:
        """Two passes over x."""
        return 4 * product(expr(s) for s in self.x.shape)
