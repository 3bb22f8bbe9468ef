"""A tensor that holds samples, with the knowledge of where; and small helpers of all forms."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxdp.kernels.clipped_sum import squared, weighed_sum
from fxdp.kernels.library import is_tiled
from fxdp.kernels.precision import HALVES, cast, wide
from fxdp.placement import Shard
from fxdp.shapes import expr
from fxdp.torch_internals import pytree


@dataclass(frozen=True)
class Batch:
    """A tensor whose samples are where `placement` says; n is their number (a SymInt)."""

    value: Tensor
    placement: Shard
    n: Any

    @property
    def rank(self) -> int:
        return self.value.dim()

    @property
    def one_position(self) -> bool:
        """Is the batch axis N long, one position a sample?"""
        at = self.placement
        return at.inner == 1 and expr(self.value.shape[at.dim]) == expr(self.n)

    def samples_first(self) -> Tensor:
        """[N, T, ...]: the sample, its positions on the batch axis, the other axes in order."""
        x, dim, inner = self.value, self.placement.dim, self.placement.inner
        if self.one_position:
            return moved(x, dim, 0).unsqueeze(1)
        size = int(inner) if inner.is_Integer else _sized(x, inner)
        x = x.reshape(*x.shape[:dim], -1, self.n, size, *x.shape[dim + 1 :])
        x = x.movedim((dim + 1, dim, dim + 2), (0, 1, 2))
        return x.reshape(self.n, x.shape[1] * size, *x.shape[3:])

    def kept(self) -> Tensor:
        """[N, ...]: the sample, then the axes of the local value in their order."""
        dim = self.placement.dim
        if self.one_position:
            return moved(self.value, dim, 0).unsqueeze(dim + 1)
        return moved(self.samples_first(), 1, dim + 1)

    def positions(self) -> Tensor:
        """[N, ..., T, i]: for an operand of a matrix product that is summed over the batch."""
        if self.one_position:
            return moved(self.value, self.placement.dim, 0).unsqueeze(-2)
        return moved(self.samples_first(), 1, self.rank - 1)


def moved(x: Tensor, axis: int, to: int) -> Tensor:
    """x with an axis in another place: x itself, and no op in a graph, where it is there."""
    return x if axis == to else x.movedim(axis, to)


def _sized(x: Tensor, size: Any) -> Any:
    """A symbolic size as torch wants it."""
    found = [s for s in x.shape if expr(s) == size]
    if found:
        return found[0]
    env = next(s.node.shape_env for s in x.shape if isinstance(s, torch.SymInt))
    return env.create_symintnode(size, hint=None)


def all_wide(values: Any) -> Any:
    """Arguments of an op, with float32 for half precision in all tensors and dtypes.

    A cast to half precision between a sum and its noise would round what one sample adds.
    """

    def widened(a: Any) -> Any:
        if isinstance(a, torch.dtype):
            return torch.float32 if a in HALVES else a
        return wide(a) if isinstance(a, Tensor) else a

    return pytree.tree_map(widened, values)


def weighed(x: Tensor, factor: Tensor) -> Tensor:
    """x[n, ...] * factor[n]; exactly 0 where the factor is, whatever x holds there."""
    f = cast(factor.reshape(-1, *[1] * (x.dim() - 1)), wide(x).dtype)
    return (wide(x) * f).masked_fill(f == 0, 0)


def summed(x: Tensor, factor: Tensor) -> Tensor:
    """[...], the sum of factor[n] * x[n, ...]."""
    if has_ops(x):
        return weighed_sum(wide(x), factor)
    return weighed(x, factor).sum(0)


def has_ops(*operands: Tensor) -> bool:
    """Do the ops of `fxdp.kernels.clipped_sum` take these?"""
    return all(x.device.type == "cpu" and not x.is_complex() for x in operands)


def has_products(a: Tensor, b: Tensor) -> bool:
    """Do `ghost_outer` and `weighed_outer` take these?"""
    return has_ops(a, b) or is_tiled(a, b)


def has_halves(a: Tensor, b: Tensor) -> bool:
    """Is one in half precision, and do ops take them as they are?

    They are to be measured by ops, too, which read the numbers that are summed, rounded. In a
    kernel of Inductor's that makes these numbers and uses them, they may be not rounded yet.
    """
    return is_tiled(a, b) and (a.dtype in HALVES or b.dtype in HALVES)


def as_taken(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Operands as those ops take them: in half precision where products are exact all the same."""
    return (a, b) if is_tiled(a, b) else (wide(a), wide(b))


def muted(x: Tensor, factor: Tensor) -> Tensor:
    """x[n, ...], but 0 where the factor is 0."""
    f = factor.reshape(-1, *[1] * (x.dim() - 1))
    return wide(x).masked_fill(f == 0, 0)


def one_each(squares: Tensor) -> Tensor:
    """[N] sums of [N, ...], such as a bmm's weights have."""
    return squares.flatten(1).sum(1) if squares.dim() > 1 else squares


def sq_sum(each: Tensor) -> Tensor:
    """Squared norms [N] of [N, ...]."""
    each = torch.view_as_real(each.resolve_conj()) if each.is_complex() else each
    each = wide(each if each.is_floating_point() else each.double())
    return squared(each)  # not the sum of squares, each of which would be written out
