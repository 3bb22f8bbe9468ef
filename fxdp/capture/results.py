"""What common ops return on fake tensors, without the Python by which torch finds it out.

While a model is captured each op runs on tensors without data, of symbolic sizes. For many torch
then runs a reference in Python, of ten ops and a hundred questions about sizes: a clamp takes ten
times as long as an addition. Where all operands are contiguous and of one shape, the result is too,
and nothing has to be asked. Everything else is left to torch.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from sympy import expand
from torch import Tensor

from fxdp.shapes import expr
from fxdp.torch_internals import FakeTensor, FakeTensorMode, OpOverload, fast_fakes

aten = torch.ops.aten
# From the mode and an op's arguments to what it returns, or None where torch has to say it.
Result = Callable[..., Any]


def strides(shape: Sequence[Any]) -> list[Any]:
    """Those of elements in order, without a gap."""
    found: list[Any] = [1]
    for size in reversed(shape[1:]):
        found.append(found[-1] * size)
    return found[::-1][: len(shape)]


def is_plain(x: Tensor) -> bool:
    """Not sparse, quantized, or of another kind."""
    return x.layout == torch.strided and not x.is_quantized


def contiguous(x: Tensor) -> bool:
    """Are its elements in order, whatever its sizes are? Nothing is asked."""
    if not is_plain(x):
        return False
    pairs = zip(x.stride(), strides(x.shape), strict=True)
    return all(expr(own) == expr(wanted) for own, wanted in pairs)


def alike(tensors: Sequence[Tensor]) -> bool:
    """Are they all contiguous, on one device and of one shape?"""
    first, *others = tensors
    return contiguous(first) and all(
        x.device == first.device
        and x.dim() == first.dim()
        and all(expr(a) == expr(b) for a, b in zip(x.shape, first.shape, strict=True))
        and contiguous(x)
        for x in others
    )


def made(mode: FakeTensorMode, x: Tensor, shape: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """A contiguous result, on the device of x."""
    return FakeTensor(mode, torch.empty(shape, dtype=dtype, device="meta"), x.device)


def same(mode: FakeTensorMode, *args: Any, **named: Any) -> Tensor | None:
    """The result has the shape and dtype of the operands: floats, and conditions beside them."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    values = [x for x in tensors if x.dtype != torch.bool]
    words = all(isinstance(v, str) for v in named.values())  # of how a gelu is approximated
    plain = values and values[0].is_floating_point() and words
    if not plain or any(x.dtype != values[0].dtype for x in values) or not alike(tensors):
        return None
    if any(isinstance(a, complex | torch.SymFloat | torch.SymInt) for a in args):
        return None
    return made(mode, values[0], values[0].shape, values[0].dtype)


def softmax(mode: FakeTensorMode, x: Tensor, dim: int, wider: bool) -> Tensor | None:
    """`wider`: of half precision, the result is in float32."""
    return None if wider else same(mode, x, dim)


def softmax_backward(
    mode: FakeTensorMode, grad: Tensor, out: Tensor, dim: int, dtype: torch.dtype
) -> Tensor | None:
    return same(mode, grad, out, dim) if dtype == grad.dtype else None


def condition(mode: FakeTensorMode, *args: Any, **named: Any) -> Tensor | None:
    """The result is a bool for each element."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    if named or any(x.is_complex() for x in tensors) or not alike(tensors):
        return None
    return made(mode, tensors[0], tensors[0].shape, torch.bool)


def bits(mode: FakeTensorMode, *args: Any) -> Tensor | None:
    """Bitwise ops of conditions."""
    bools = all(isinstance(a, Tensor) and a.dtype == torch.bool for a in args)
    return condition(mode, *args) if bools else None


def norm(
    mode: FakeTensorMode,
    x: Tensor,
    order: Any = 2,
    dims: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """`linalg.vector_norm` over some axes, or all; without elements torch asks which order."""
    if dtype is not None or order not in (1, 2) or not is_plain(x) or not x.is_floating_point():
        return None
    axes = range(x.dim())
    gone = {axes[d] for d in dims if -len(axes) <= d < len(axes)} if dims else set(axes)
    if dims and len(gone) < len(dims):  # one twice, or one too far
        return None
    kept = [1 if d in gone else s for d, s in enumerate(x.shape) if keepdim or d not in gone]
    return made(mode, x, kept, x.dtype)


def total(
    mode: FakeTensorMode, x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, **named: Any
) -> Tensor | None:
    """A sum over some axes, or all."""
    return None if named else norm(mode, x, 1, dims, keepdim)


def view(mode: FakeTensorMode, x: Tensor, shape: Sequence[Any]) -> Tensor | None:
    """Other axes over the same elements, where those are as many whatever the sizes are."""
    if not contiguous(x):
        return None
    elements, known = math.prod(x.shape), math.prod(s for s in shape if not left_open(s))
    if any(map(left_open, shape)):
        if known == 0:
            return None
        shape = [elements // known if left_open(s) else s for s in shape]
    if expand(expr(math.prod(shape))) != expand(expr(elements)):
        return None
    return torch.as_strided(x, shape, strides(shape))


def left_open(size: Any) -> bool:
    return isinstance(size, int) and size == -1


def addmm(mode: FakeTensorMode, bias: Tensor, x: Tensor, y: Tensor, **named: Any) -> Tensor | None:
    """x y, [m, k] and [k, n], and one bias for all rows."""
    one = {(t.dtype, t.device) for t in (bias, x, y)}
    if (
        named
        or len(one) > 1
        or not (is_plain(x) and is_plain(y))
        or not bias.dim() < x.dim() == y.dim() == 2
    ):
        return None
    pairs = [(x.shape[1], y.shape[0]), *zip(bias.shape, y.shape[1:], strict=False)]
    if any(expr(a) != expr(b) for a, b in pairs):
        return None
    return made(mode, x, (x.shape[0], y.shape[1]), x.dtype)


def fractional(
    mode: FakeTensorMode, x: Tensor, kernel: Sequence[int], sizes: Sequence[int], chances: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Maxima in windows drawn at random, and where they stand: torch has nothing for symbols."""
    windows = zip(kernel, sizes, x.shape[-len(sizes) :], strict=True)
    if not all(expr(s).is_Integer and k + out - 1 <= s for k, out, s in windows):
        return None
    shape = (*x.shape[: -len(sizes)], *sizes)
    return made(mode, x, shape, x.dtype), made(mode, x, shape, torch.int64)


RESULTS: dict[OpOverload, Result] = {
    aten.fractional_max_pool3d.default: fractional,
    aten.addmm.default: addmm,
    aten.sum.dim_IntList: total,
    aten.view.default: view,
    aten._unsafe_view.default: view,
    **dict.fromkeys(
        (
            aten.abs.default, aten.clamp.default, aten.clamp_max.default, aten.clamp_min.default,
            aten.cos.default, aten.elu.default, aten.exp.default, aten.gelu.default,
            aten.gelu_backward.default, aten.log.default, aten.masked_fill.Scalar,
            aten.neg.default, aten.pow.Tensor_Scalar, aten.relu.default, aten.rsqrt.default,
            aten.sigmoid.default, aten.sigmoid_backward.default, aten.silu.default,
            aten.sin.default, aten.sqrt.default, aten.tanh.default, aten.tanh_backward.default,
            aten.threshold_backward.default, aten.where.self,
        ),
        same,
    ),
    aten._softmax.default: softmax,
    aten._log_softmax.default: softmax,
    aten._softmax_backward_data.default: softmax_backward,
    aten._log_softmax_backward_data.default: softmax_backward,
    **dict.fromkeys(
        (
            aten.eq.Scalar, aten.eq.Tensor, aten.ge.Scalar, aten.gt.Scalar, aten.isinf.default,
            aten.isnan.default, aten.le.Scalar, aten.lt.Scalar, aten.logical_not.default,
            aten.ne.Scalar, aten.ne.Tensor,
        ),
        condition,
    ),
    aten.bitwise_and.Tensor: bits,
    aten.bitwise_not.default: bits,
    aten.bitwise_or.Tensor: bits,
    aten.linalg_vector_norm.default: norm,
}  # fmt: skip


def fast(op: OpOverload, result: Result, table: dict[OpOverload, Callable[..., Any]]) -> Any:
    """As torch calls it: where there is no short way, torch's own, without this one."""

    def run(mode: FakeTensorMode, *args: Any, **kwargs: Any) -> Any:
        found = result(mode, *args, **kwargs)
        if found is not None:
            return found
        table.pop(op, None)  # another thread may be here, too
        try:
            return mode.dispatch(op, (), args, kwargs)
        finally:
            table[op] = run

    return run


@contextlib.contextmanager
def results_at_once() -> Iterator[None]:
    """While a model is captured: these in the place of torch's references."""
    table = fast_fakes()
    added = {op: fast(op, result, table) for op, result in RESULTS.items() if op not in table}
    table |= added
    try:
        yield
    finally:
        for op in added:
            table.pop(op, None)
