"""Linear ops on the sums of all samples at once: the same op with a batch axis in front.

Where a parameter's gradient is made of a sum over samples by linear ops, a sample's own gradient
is made of its own share by the same ops. `EACH` has them for N shares at once. torch.vmap is the
same idea, but many of its rules make the batch size a constant. Families whose ops fold the
samples into a batch of their own have more of them.

Letters: N samples; an `Each` is [N, *shape], where the op's own operand is of that shape.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxdp.forms.each import Each, count, given, is_tensor, raised, rank
from fxdp.torch_internals import OpOverload, pytree

aten = torch.ops.aten
AXES = ("dim", "dims", "dim0", "dim1", "dim2", "dimension")


def pointwise(op: OpOverload) -> Callable[..., Each]:
    """Element by element, with broadcasting."""

    def each(*args: Any, **kwargs: Any) -> Each:
        top = max(rank(a) for a in args)
        return Each(op(*(raised(a, top) for a in args), **kwargs))

    return each


def along(op: OpOverload) -> Callable[..., Any]:
    """An op that names its axes, all of which are one further to the right now."""
    places = [i for i, a in enumerate(op._schema.arguments) if a.name in AXES]

    def each(*args: Any, **kwargs: Any) -> Any:
        moved = list(args)
        for i in places:
            moved[i] = pytree.tree_map_only(int, lambda d: d + 1, moved[i])
        n = count(args)
        moved = pytree.tree_map(lambda a: given(a, n), moved, is_leaf=is_tensor)
        return pytree.tree_map_only(Tensor, Each, op(*moved, **kwargs))

    return each


def last_axes(op: OpOverload) -> Callable[..., Each]:
    """An op on the last axes, which does not mind more of them in front."""

    def each(x: Each, *args: Any, **kwargs: Any) -> Each:
        return Each(op(x.value, *args, **kwargs))

    return each


def viewed(x: Each, shape: Any, *_: Any, **__: Any) -> Each:
    return Each(x.value.reshape(x.value.shape[0], *shape))


def expanded(x: Each, shape: Any, *_: Any, **__: Any) -> Each:
    return Each(raised(x, len(shape)).expand(x.value.shape[0], *shape))


def repeated(x: Each, repeats: Any) -> Each:
    return Each(raised(x, len(repeats)).repeat(1, *repeats))


def permuted(x: Each, dims: Any) -> Each:
    return Each(x.value.permute(0, *(d + 1 for d in dims)))


def turned(x: Each) -> Each:
    return Each(x.value.transpose(-2, -1)) if x.rank == 2 else x


def squeezed(x: Each) -> Each:
    return Each(x.value.reshape([x.value.shape[0], *(s for s in x.value.shape[1:] if s != 1)]))


def summed(x: Each, *, dtype: Any = None) -> Each:
    return Each(x.value.unsqueeze(-1).flatten(1).sum(1, dtype=dtype))


def summed_along(x: Each, dims: Any, keepdim: bool = False, *, dtype: Any = None) -> Each:
    axes = [d + 1 for d in dims] if dims else list(range(1, x.value.dim()))
    return Each(x.value.sum(axes, keepdim, dtype=dtype) if axes else x.value)


def multiplied(a: Any, b: Any) -> Each:
    """mm and bmm"""
    return Each(torch.matmul(*(x.value if isinstance(x, Each) else x for x in (a, b))))


def rolled(x: Each, shifts: Any, dims: Any = ()) -> Each:
    if dims:
        return Each(x.value.roll(shifts, [d + 1 for d in dims]))
    return Each(x.value.flatten(1).roll(shifts, 1).reshape(x.value.shape))


def in_zeros(x: Each, sizes: Any, dim: int, spots: Tensor) -> Each:
    """Zeros, with x at some spots of an axis."""
    zeros = x.value.new_zeros(x.value.shape[0], *sizes)
    return Each(zeros.index_add(dim + 1, spots, x.value))


def select_grown(x: Each, sizes: Any, dim: int, index: int) -> Each:
    spot = torch.arange(sizes[dim], device=x.value.device)[index]
    return in_zeros(Each(x.value.unsqueeze(dim + 1)), sizes, dim, spot.reshape(1))


def slice_grown(x: Each, sizes: Any, dim: int, start: int, end: int, step: int) -> Each:
    return in_zeros(x, sizes, dim, torch.arange(sizes[dim], device=x.value.device)[start:end:step])


def looked_up_back(x: Each, ids: Tensor, rows: int, padding: int, by_frequency: bool) -> Each:
    """The gradient of an embedding of ids that all samples share."""
    grad = x.value.masked_fill((ids == padding).unsqueeze(-1), 0) if padding >= 0 else x.value
    if by_frequency:
        grad = grad / (ids.flatten() == ids.unsqueeze(-1)).sum(-1, keepdim=True)
    n, d = grad.shape[0], grad.shape[-1]
    return Each(grad.new_zeros(n, rows, d).index_add(1, ids.flatten(), grad.reshape(n, -1, d)))


def looked_up(x: Each, indices: Any) -> Each:
    """x[indices], the indices being shared."""
    axes, spots, width = spread_indices(indices)
    out = aten.index(in_front(x.value, axes), [None, spots(x.value.shape)])
    return Each(back_in_place(out, axes, width))


def put(x: Any, indices: Any, values: Any, accumulate: bool = False) -> Each:
    """x with values written or added at shared indices."""
    n = count(x, values)
    x = given(x, n)
    axes, spots, width = spread_indices(indices)
    where = spots(x.shape)
    flat = in_front(x, axes)
    shape = back_in_place(flat.new_zeros(()).expand(n, *where.shape, *flat.shape[2:]), axes, width)
    values = (
        raised(values, shape.dim() - 1).expand(shape.shape)
        if isinstance(values, Each)
        else (values.expand(shape.shape))
    )
    first = first_axis(axes)
    values = values.movedim(list(range(first + 1, first + 1 + width)), list(range(1, 1 + width)))
    values = values.reshape(n, -1, *flat.shape[2:])
    if accumulate:
        flat = flat.index_add(1, where.flatten(), values)
    else:
        flat = flat.index_copy(1, where.flatten(), values)
    rest = [d for d in range(x.dim() - 1) if d not in axes]
    order = [*axes, *rest]
    flat = flat.reshape(n, *(x.shape[d + 1] for d in order))
    return Each(flat.permute(0, *(1 + order.index(d) for d in range(len(order)))))


def first_axis(axes: list[int]) -> int:
    """Where indices put their axes: in their place if adjacent, else in front."""
    return axes[0] if axes == list(range(axes[0], axes[0] + len(axes))) else 0


def spread_indices(indices: Any) -> tuple[list[int], Callable[..., Tensor], int]:
    """The indexed axes, one index into them taken together, and its rank."""
    axes = [d for d, i in enumerate(indices) if i is not None]
    named = torch.broadcast_tensors(*(indices[d] for d in axes))

    def spots(shape: Any) -> Tensor:
        flat = torch.zeros_like(named[0])
        for d, i in zip(axes, named, strict=True):
            flat = flat * shape[d + 1] + torch.where(i < 0, i + shape[d + 1], i)
        return flat

    return axes, spots, named[0].dim()


def in_front(x: Tensor, axes: list[int]) -> Tensor:
    """[N, indexed axes as one, the others]"""
    x = x.movedim([d + 1 for d in axes], list(range(1, 1 + len(axes))))
    rows = math.prod(x.shape[1 : 1 + len(axes)])
    return x.reshape(x.shape[0], rows, *x.shape[1 + len(axes) :])


def back_in_place(out: Tensor, axes: list[int], width: int) -> Tensor:
    """[N, *index, the others] with the axes of the index where they belong."""
    first = first_axis(axes)
    return out.movedim(list(range(1, 1 + width)), list(range(first + 1, first + 1 + width)))


def added_at(x: Any, dim: int, index: Tensor, source: Each, **kwargs: Any) -> Each:
    """index_add at shared places."""
    return Each(given(x, count(source)).index_add(dim + 1, index, source.value, **kwargs))


def picked(x: Each, dim: int, index: Tensor) -> Each:
    """index_select at shared places."""
    return Each(x.value.index_select(dim + 1, index))


def windows_back(x: Each, sizes: Any, dim: int, size: int, step: int) -> Each:
    """The gradient of `Tensor.unfold`."""
    n = x.value.shape[0]
    return Each(aten.unfold_backward(x.value, [n, *sizes], dim + 1, size, step))


def row_looked_up(table: Each, ids: Tensor, *_: Any) -> Each:
    """An embedding of ids that all samples share."""
    return looked_up(table, [ids])


def overwritten(x: Tensor, source: Each, *_: Any) -> Each:
    """`copy_`"""
    rows = raised(source, x.dim())
    return Each(rows.expand(rows.shape[0], *x.shape).to(x.dtype))


POINTWISE = (
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor,
    aten.div.Scalar, aten.div.Tensor_mode, aten.neg.default, aten.where.self,
    aten.masked_fill.Scalar, aten.clone.default, aten.contiguous.default,
    aten._to_copy.default, aten._conj.default,
    aten.lift_fresh_copy.default, aten.view_as_real.default, aten.view_as_complex.default,
    aten.elu_backward.default, aten.gelu_backward.default, aten.hardsigmoid_backward.default,
    aten.hardswish_backward.default, aten.hardtanh_backward.default,
    aten.leaky_relu_backward.default, aten.log_sigmoid_backward.default,
    aten.mish_backward.default, aten.sigmoid_backward.default, aten.silu_backward.default,
    aten.softplus_backward.default, aten.tanh_backward.default, aten.threshold_backward.default,
)  # fmt: skip

ALONG = (
    aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.flip.default, aten.cumsum.default, aten.slice.Tensor, aten.select.int,
    aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.cat.default,
    aten.stack.default, aten.diagonal.default, aten.diagonal_scatter.default,
    aten.slice_scatter.default, aten.select_scatter.default, aten.gather.default,
    aten.scatter_add.default, aten.scatter.src, aten._softmax_backward_data.default,
    aten._log_softmax_backward_data.default, aten._fft_r2c.default, aten._fft_c2r.default,
    aten._fft_c2c.default, aten.scatter.value, aten.unfold.default, aten.glu_backward.default,
    aten._cdist_backward.default,
)  # fmt: skip

LAST_AXES = (
    aten.tril.default, aten.triu.default, aten.constant_pad_nd.default,
    aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
)  # fmt: skip

EACH: dict[OpOverload, Callable[..., Any]] = {
    **{op: pointwise(op) for op in POINTWISE},
    **{op: along(op) for op in ALONG},
    **{op: last_axes(op) for op in LAST_AXES},
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default, aten.reshape.default), viewed),
    aten.expand.default: expanded,
    aten.repeat.default: repeated,
    aten.permute.default: permuted,
    aten.t.default: turned,
    aten.squeeze.default: squeezed,
    aten.sum.default: summed,
    aten.sum.dim_IntList: summed_along,
    aten.mm.default: multiplied,
    aten.bmm.default: multiplied,
    aten.roll.default: rolled,
    aten.select_backward.default: select_grown,
    aten.slice_backward.default: slice_grown,
    aten.embedding_dense_backward.default: looked_up_back,
    aten.index.Tensor: looked_up,
    aten.index_put.default: put,
    aten._unsafe_index_put.default: put,
    aten.index_add.default: added_at,
    aten.index_select.default: picked,
    aten._unsafe_index.Tensor: looked_up,
    aten._reshape_alias.default: viewed,
    aten.unfold_backward.default: windows_back,
    aten.embedding.default: row_looked_up,
    aten.copy.default: overwritten,
}
