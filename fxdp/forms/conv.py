"""The weight gradient of a convolution, of any dimension.

Letters: n samples, t positions folded into the batch axis, C channels in, D channels out, G
groups, k the kernel's axes. A transposed convolution is the same sum with x and g exchanged.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import sympy
import torch
from torch import Tensor

from fxdp.forms.batch import has_ops, muted, sq_sum, weighed, wide
from fxdp.forms.strategy import Strategy
from fxdp.kernels import loops
from fxdp.kernels.clipped_sum import weighed_conv
from fxdp.kernels.crb import chained, crb_conv
from fxdp.kernels.ghost import ghost_whole
from fxdp.kernels.unfold import ghost_conv, unfold, unfolded_conv
from fxdp.shapes import expr, product

WEIGHT_ONLY = [False, True, False]


@dataclass(frozen=True)
class Spec:
    """A convolution's arguments: the weight's shape [D, C / G, *k] and how the kernel moves."""

    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight[2:]


@dataclass(frozen=True)
class Conv:
    """The sum over n of the weight gradient of sample n.

    Attributes:
        x: [N, T, C, ...], what the kernel moves over.
        g: [N, T, D, ...], one position for every stop of the kernel.
        spec: the convolution.
    """

    x: Tensor
    g: Tensor
    spec: Spec
    strategies: ClassVar[tuple[Strategy, ...]] = (
        "instantiate", "unfold", "crb", "ghost", "stream", "naive", "multi",
    )  # fmt: skip

    def exact(self) -> "Conv":
        """The same sum, with x cut off behind the last stop of the kernel.

        A transposed convolution with output padding may leave room for stops that g lacks.
        """
        s = self.spec
        reach = [
            (t - 1) * step + d * (k - 1) + 1
            for t, step, d, k in zip(self.g.shape[3:], s.stride, s.dilation, s.kernel, strict=True)
        ]
        room = [h + 2 * p for h, p in zip(self.x.shape[3:], s.padding, strict=True)]
        if all(h - r < step for h, r, step in zip(room, reach, s.stride, strict=True)):
            return self
        x = torch.nn.functional.pad(self.x, [p for p in reversed(s.padding) for _ in range(2)])
        for axis, r in enumerate(reach):
            x = x.narrow(3 + axis, 0, r)
        return Conv(x, self.g, Spec(s.weight, s.stride, (0,) * len(reach), s.dilation, s.groups))

    def per_sample(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N, D, C / G, *k]"""
        self = self.exact()
        match strategy:
            case "crb" if len(self.spec.kernel) < 3:
                return self.chain_rule_based()
            case "unfold":
                return self.by_windows()
            case "naive" | "multi":
                s = self.spec
                run = loops.loop_conv if strategy == "naive" else loops.replicas_conv
                spec = (s.weight, s.stride, s.padding, s.dilation, s.groups)
                return run(wide(self.x), wide(self.g), *spec)
            case _:
                return self.grouped()

    def replica(self, x: Tensor, g: Tensor) -> Tensor:
        """One sample's gradient, as the convolution's own backward gives it."""
        s = self.spec
        shape = x.new_zeros(()).expand(s.weight)
        return torch.ops.aten.convolution_backward(
            g, x, shape, None, s.stride, s.padding, s.dilation, False,
            [0] * len(s.kernel), s.groups, WEIGHT_ONLY,
        )[1]  # fmt: skip

    def grouped(self) -> Tensor:
        """One grouped convolution's weight gradient, with the samples among its channels.

        Neither stride nor dilation changes its part, and every dimension works alike.
        """
        s, x, g = self.spec, wide(self.x), wide(self.g)
        n, t = x.shape[:2]
        shape = x.new_zeros(()).expand(n * t * s.weight[0], *s.weight[1:])
        out = torch.ops.aten.convolution_backward(
            g.reshape(1, n * t * g.shape[2], *g.shape[3:]),
            x.reshape(1, n * t * x.shape[2], *x.shape[3:]),
            shape, None, s.stride, s.padding, s.dilation, False,
            [0] * len(s.kernel), n * t * s.groups, WEIGHT_ONLY,
        )[1]  # fmt: skip
        return out.reshape(n, t, *s.weight).sum(1)

    def chain_rule_based(self) -> Tensor:
        """A convolution of x with g as its kernel (`fxdp.kernels.crb`)."""
        s, x, g = self.spec, wide(self.x), wide(self.g)
        run: Any = crb_conv if has_ops(x, g) else chained
        return run(x, g, s.weight, s.stride, s.padding, s.dilation, s.groups)

    def by_windows(self) -> Tensor:
        """A matrix product of the gradient with the kernel's windows, for each sample."""
        if self.has_windows:
            each = unfolded_conv(*self.folded())
            return each.unflatten(0, self.x.shape[:2]).sum(1)
        x, g = self.unfolded()
        return torch.einsum("ngtc,ngtd->ngdc", x, g).reshape(-1, *self.spec.weight)

    @property
    def has_windows(self) -> bool:
        """Do the ops of `fxdp.kernels.unfold` take this?"""
        return has_ops(self.x, self.g) and len(self.spec.kernel) < 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the sum."""
        return self.spec.weight

    @property
    def streams(self) -> bool:
        """Can `write` make its per-sample gradients?"""
        return self.has_windows

    def write(self, room: Tensor) -> Tensor:
        """[m, D, C / G, *k], in memory that is there."""
        exact = self.exact()
        if exact.x.shape[1] == 1:
            return unfold(room, *exact.folded())
        return torch.sum(
            unfolded_conv(*exact.folded()).unflatten(0, exact.x.shape[:2]), 1, out=room
        )

    def folded(self) -> tuple[Any, ...]:
        """The operands of an op: positions among the samples, and the convolution."""
        s, x, g = self.spec, wide(self.x).flatten(0, 1), wide(self.g).flatten(0, 1)
        return x, g, s.weight, s.stride, s.padding, s.dilation, s.groups

    def unfolded(self) -> tuple[Tensor, Tensor]:
        """x as windows [N, G, T, C / G * k] and g as [N, G, T, D / G], T counting all stops."""
        s, x, g = self.spec, wide(self.x), wide(self.g)
        nd = len(s.kernel)
        x = torch.nn.functional.pad(x, [p for p in reversed(s.padding) for _ in range(2)])
        for axis, (k, step, d) in enumerate(zip(s.kernel, s.stride, s.dilation, strict=True)):
            x = x.unfold(3 + axis, d * (k - 1) + 1, step)[..., ::d]
            x = x.narrow(3 + axis, 0, g.shape[3 + axis])
        x = x.unflatten(2, (s.groups, -1))  # n t G C/G stops... k...
        order = [0, 2, 1, *range(4, 4 + nd), 3, *range(4 + nd, 4 + 2 * nd)]
        x = x.permute(order).flatten(3 + nd).flatten(2, 2 + nd)
        g = g.unflatten(2, (s.groups, -1)).movedim(2, 1).movedim(3, -1)
        return x, g.flatten(2, -2)

    def sq_norm(self, strategy: Strategy = "instantiate") -> Tensor:
        """[N] squared norms; the ghost norm is the linear one over the kernel's windows
        (Bu et al., arXiv:2205.10683, section 3.1), for each group by itself.
        """
        if strategy != "ghost" or self.x.is_complex():
            return sq_sum(self.per_sample(strategy))
        exact = self.exact()
        if exact.has_windows and exact.x.shape[1] == 1:
            return ghost_conv(*exact.folded())
        return ghost_whole(*exact.unfolded()).sum(1)

    def gross(self) -> Tensor:
        """[N], at least the lengths of a sample's terms, added up: by Cauchy and Schwarz, with each
        number of x in so many windows at most."""
        s = self.spec
        times = math.prod(
            k if d > 1 else -(-k // step)
            for k, step, d in zip(s.kernel, s.stride, s.dilation, strict=True)
        )
        x, g = (sq_sum(wide(v)) for v in (self.x, self.g))
        return (x * times).sqrt() * g.sqrt()

    def total(self, factor: Tensor) -> Tensor:
        """[D, C / G, *k], the sum with sample n counted factor[n] times."""
        exact = self.exact()
        if has_ops(exact.x, exact.g):
            each = factor.unsqueeze(1).expand(exact.x.shape[:2]).flatten()
            x, g, *spec = exact.folded()
            return weighed_conv(x, g, each, *spec)
        x, g = muted(exact.x, factor), weighed(exact.g, factor)
        return exact.replica(x.flatten(0, 1), g.flatten(0, 1))

    def extra(self, strategy: Strategy) -> sympy.Expr:
        """Numbers that the norms need in addition to the form."""
        t = expr(self.g.shape[1]) * product(expr(s) for s in self.g.shape[3:])
        if strategy == "ghost":
            return 2 * expr(self.g.shape[0]) * self.spec.groups * t * t
        if strategy == "stream":
            return product(expr(s) for s in self.spec.weight)  # of one sample, at least
        return expr(self.g.shape[0]) * product(expr(s) for s in self.spec.weight)

    def cost(self, strategy: Strategy) -> sympy.Expr:
        """Flops for the norms and what comes after them, a byte moved counted as a flop."""
        d, c, *k = (expr(s) for s in self.spec.weight)
        window = c * product(k)
        batch = expr(self.g.shape[0])
        t = expr(self.g.shape[1]) * product(expr(s) for s in self.g.shape[3:])
        groups = self.spec.groups
        if strategy == "ghost":
            grams = 2 * t * t * (groups * window + d) + 10 * groups * t * t
            return batch * (grams + 8 * groups * t * window + 2 * t * d * window)
        return batch * (2 * t * d * window + (4 if strategy == "stream" else 12) * d * window)
