"""Kernels that keep the number of samples a symbol while a model is captured.

torch's own kernels of these ops make it a constant, ask for its value, or have a backward pass
in which a sum over samples cannot be split. Those here compute the same, out of ops that do
not; while a model is captured they stand in their place.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fxdp.capture.patches import stand_ins
from fxdp.capture.recurrent import RECURRENT
from fxdp.capture.resizing import bicubic_antialiased, linear_antialiased
from fxdp.kernels.ctc import ctc_loss as whole_ctc_loss
from fxdp.kernels.matrix_exp import matrix_exp as whole_matrix_exp
from fxdp.torch_internals import DispatchKey, OpOverload

aten = torch.ops.aten
COMPOSITE, AUTOGRAD = DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd


def take_along_dim(x: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """A gather whose operands broadcast to each other on all axes but `dim`."""
    if dim is None:
        return x.reshape(-1).gather(0, indices.reshape(-1))
    if x.dim() != indices.dim():
        raise RuntimeError(
            "torch.take_along_dim(): input and indices should have the same number of dimensions, "
            f"but got {x.dim()} dimensions for input, and {indices.dim()} dimensions for indices"
        )
    at = dim % x.dim()
    pairs = list(zip(x.shape, indices.shape, strict=True))
    sizes = [b if a == 1 else a for a, b in pairs]  # N, from 2 up, is never 1
    whole = [*sizes[:at], x.shape[at], *sizes[at + 1 :]]
    wanted = [*sizes[:at], indices.shape[at], *sizes[at + 1 :]]
    return x.expand(whole).gather(at, indices.expand(wanted))


def adaptive_avg_pool2d(x: Tensor, size: list[int]) -> Tensor:
    """torch's own gives means of a channels-last tensor such strides by `as_strided`, which
    reads memory and tells nothing of samples."""
    return x.mean([-1, -2], keepdim=True) if list(size) == [1, 1] else _pool2d(x, size)


def adaptive_avg_pool3d(x: Tensor, size: list[int]) -> Tensor:
    """The same for one more axis."""
    return x.mean([-1, -2, -3], keepdim=True) if list(size) == [1, 1, 1] else _pool3d(x, size)


_pool2d: Any = aten._adaptive_avg_pool2d
_pool3d: Any = aten._adaptive_avg_pool3d


def matrix_exp(x: Tensor) -> Tensor:
    """An op whose backward pass is one op, linear in the incoming gradient."""
    return whole_matrix_exp(x)


MANY = 25  # rows from which on torch works distances out as a product of matrices


def cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """torch's own asks how many rows there are, among them N; this one asks of the others."""
    mode = compute_mode or 0
    rows: list[Any] = [x.shape[-2], y.shape[-2]]
    many = any(isinstance(r, int) and r > MANY for r in rows)
    if p != 2 or not (mode == 1 or (mode == 0 and many)):
        return aten._cdist_forward(x, y, p, 2)
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = (t.expand(*batch, *t.shape[-2:]) for t in (x, y))
    return aten._euclidean_dist(x, y)


def embedding_backward(
    grad: Tensor, ids: Tensor, rows: int, padding: int, by_frequency: bool, sparse: bool
) -> Tensor:
    """A sparse gradient is a dense one here: noise falls on every row."""
    return aten.embedding_dense_backward(grad, ids, rows, padding, by_frequency)


def check_errors(info: Tensor, name: str, *, is_matrix: bool) -> None:
    """No assertion that all matrices were regular, which torch orders by a token that no half of a
    cut graph has a place for: a sample that has another gets NaN, and so no part."""


AS_TENSORS = "ctc_loss: give input_lengths and target_lengths as tensors [N], made of the batch"
PADDED = (
    "ctc_loss: give the targets padded, [N, S], not one after the other: what is beyond "
    "target_lengths is not looked at"
)


def ctc_loss(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor,
    blank: int = 0, reduction: int = 1, zero_infinity: bool = False,
) -> Tensor:  # fmt: skip
    """An op that keeps the rows apart; torch's own has a result of a size that the lengths give.

    A row of which lengths or labels are impossible has a loss of NaN.
    """
    alone = log_probs.dim() == 2
    if alone:
        log_probs, targets = log_probs.unsqueeze(1), targets.unsqueeze(0)
    if targets.dim() != 2:
        raise ValueError(PADDED)
    steps, labels = (t.reshape(-1) for t in (input_lengths, target_lengths))
    loss: Tensor = whole_ctc_loss(log_probs, targets, steps, labels, blank, zero_infinity)[0]
    if zero_infinity:
        loss = torch.where(loss == math.inf, 0.0, loss)
    if reduction == 1:
        return (loss / labels.clamp(min=1)).mean()
    return loss.sum() if reduction == 2 else loss.squeeze(0) if alone else loss


def ctc_loss_of_lists(
    log_probs: Tensor, targets: Tensor, input_lengths: list[int], target_lengths: list[int],
    blank: int = 0, reduction: int = 1, zero_infinity: bool = False,
) -> Tensor:  # fmt: skip
    """The lengths as numbers: of a batch of one size, or of a single sequence."""
    if log_probs.dim() == 3:
        raise ValueError(AS_TENSORS)
    steps, labels = (
        torch.tensor(x, device=log_probs.device) for x in (input_lengths, target_lengths)
    )
    return ctc_loss(log_probs, targets, steps, labels, blank, reduction, zero_infinity)


def sgn(x: Tensor) -> Tensor:
    """torch's own derivative, which is zero for reals, asks for all sizes."""
    return x / x.abs().masked_fill(x == 0, 1) if x.is_complex() else torch.sign(x)


def grid_sampler(x: Tensor, grid: Tensor, *modes: Any) -> Tensor:
    """Without cuDNN's kernel, which torch has nothing for to trace it with."""
    return (aten.grid_sampler_2d if x.dim() == 4 else aten.grid_sampler_3d)(x, grid, *modes)


KERNELS: dict[tuple[OpOverload, DispatchKey], Callable[..., Any]] = {
    (aten.take_along_dim.default, COMPOSITE): take_along_dim,
    (aten.adaptive_avg_pool2d.default, COMPOSITE): adaptive_avg_pool2d,
    (aten.adaptive_avg_pool3d.default, COMPOSITE): adaptive_avg_pool3d,
    (aten.cdist.default, COMPOSITE): cdist,
    (aten._upsample_bicubic2d_aa.default, AUTOGRAD): bicubic_antialiased,
    (aten._upsample_bilinear2d_aa.default, AUTOGRAD): linear_antialiased,
    (aten.ctc_loss.Tensor, COMPOSITE): ctc_loss,
    (aten.ctc_loss.IntList, COMPOSITE): ctc_loss_of_lists,
    (aten.embedding_backward.default, COMPOSITE): embedding_backward,
    (aten.linalg_matrix_exp.default, AUTOGRAD): matrix_exp,
    (aten._linalg_check_errors.default, AUTOGRAD): check_errors,
    (aten.sgn.default, AUTOGRAD): sgn,
    (aten.grid_sampler.default, COMPOSITE): grid_sampler,
} | {(op, key): run for op, run in RECURRENT.items() for key in (COMPOSITE, AUTOGRAD)}


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """torch's own, but a negative variance is no error: a sample that has one gets NaN."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(reduction + " is not valid")
    if not isinstance(var, Tensor):
        if var < 0:
            raise ValueError("var has negative entry/entries")
        var = var * torch.ones_like(input)
    if var.dim() == input.dim() - 1:
        var = var.unsqueeze(-1)
    if var.dim() != input.dim():
        raise ValueError("var is of incorrect size")
    var = torch.where(var < 0, torch.nan, var)
    # The clamp is no part of the gradient.
    var = var + (var.clamp(min=eps) - var).detach()
    loss = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def affine_grid(theta: Tensor, size: list[int], align_corners: bool | None = None) -> Tensor:
    """torch's own, which looks for the smallest of all sizes, among them N."""
    d, pixels = len(size) - 2, size[2:]
    if theta.dim() != 3 or tuple(theta.shape[1:]) != (d, d + 1):
        raise ValueError(f"expected affine matrices for sizes {size}, but got {theta.shape}")

    def places(count: int) -> Tensor:
        if count == 1:
            return theta.new_zeros(1)
        end = 1 if align_corners else (count - 1) / count
        return torch.linspace(-end, end, count, dtype=theta.dtype, device=theta.device)

    axes = torch.meshgrid(*(places(count) for count in pixels), indexing="ij")
    base = torch.stack([*reversed(axes), torch.ones_like(axes[0])], -1)
    grid = torch.matmul(base.reshape(-1, d + 1), theta.transpose(1, 2))
    return grid.reshape(theta.shape[0], *pixels, d)


def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: Any = None,
    ignore_index: int = -100, reduce: Any = None, reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """torch 2.11's own divides by a number of samples that it asks for, where targets are
    probabilities."""
    if size_average is not None or reduce is not None:
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    kinds = {"none": 0, "mean": 1, "sum": 2}
    if reduction not in kinds:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if not target.is_floating_point() or target.shape != input.shape:
        kind = kinds[reduction]
        return aten.cross_entropy_loss(input, target, weight, kind, ignore_index, label_smoothing)
    axis = 0 if input.dim() == 1 else 1
    target = target * (1 - label_smoothing) + label_smoothing / input.shape[axis]
    each = -input.log_softmax(axis) * target
    if weight is not None:
        each = each * weight.reshape(-1, *[1] * (input.dim() - 1 - axis))
    loss = each.sum(axis)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.gaussian_nll_loss: gaussian_nll_loss,
    F.affine_grid: affine_grid,
} | ({F.cross_entropy: cross_entropy} if torch.__version__ < "2.12" else {})


@contextlib.contextmanager
def symbolic_kernels() -> Iterator[None]:
    """While a model is captured: these kernels in the place of torch's own."""
    before = {at: at[0].py_kernels.get(at[1]) for at in KERNELS}
    with stand_ins(FUNCTIONS):
        try:
            for (op, key), kernel in KERNELS.items():
                op.py_kernels[key] = cast(Any, kernel)
                op._dispatch_cache.clear()
            yield
        finally:
            for (op, key), kernel in before.items():
                del op.py_kernels[key]
                if kernel is not None:
                    op.py_kernels[key] = kernel
                op._dispatch_cache.clear()
