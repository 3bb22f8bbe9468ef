"""Decompositions: which ops are left when the graph reaches the proof.

The core decompositions of torch leave few ops to reason about. What they leave whole and a
proof would rather see apart is taken apart here: an op that adds a bias, an op that counts the
batch in its result, an op with one result that sums over samples and another that does not.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxdp.kernels.grouped import convolution, convolution_input, convolution_weight
from fxdp.kernels.opaque import max_pool2d_backward
from fxdp.torch_internals import OpOverload, core_aten_decompositions, get_decompositions

aten = torch.ops.aten


def addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    return _biased(bias, aten.mm(a, b), beta, alpha)


def baddbmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    return _biased(bias, aten.bmm(a, b), beta, alpha)


def _biased(bias: Tensor, x: Tensor, beta: float, alpha: float) -> Tensor:
    x = x if alpha == 1 else x * alpha
    return x + (bias if beta == 1 else bias * beta)


def mean(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return aten.sum(x, dtype=dtype) / x.numel()


def mean_dim(
    x: Tensor, dim: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    dims = [d % max(x.dim(), 1) for d in dim] if dim else list(range(x.dim()))
    count = math.prod([x.shape[d] for d in dims]) if x.dim() else 1
    return aten.sum(x, dims, keepdim, dtype=dtype) / count


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, sizes: list[int] | None, stride: list[int],
    padding: list[int], dilation: list[int], transposed: bool, output_padding: list[int],
    groups: int, mask: list[bool],
) -> Any:  # fmt: skip
    """One node a gradient, so that each is placed, and replaced, by itself."""
    if sum(mask) == 1 and not mask[2] and sizes is None:
        return NotImplemented
    # The sizes are the bias's, and may tell of the number of samples.
    rest = (None, stride, padding, dilation, transposed, output_padding, groups)
    found: list[Tensor | None] = [None, None, None]
    for i in range(2):
        if mask[i]:
            only = [i == 0, i == 1, False]
            found[i] = aten.convolution_backward(grad, x, weight, *rest, only)[i]
    if mask[2]:
        found[2] = grad.sum([0, *range(2, grad.dim())])
    return tuple(found)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def mv(a: Tensor, b: Tensor) -> Tensor:
    return aten.mm(a, b.unsqueeze(1)).squeeze(1)


def copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """x gives nothing but its shape and dtype."""
    return source.to(x.dtype).expand(x.shape).clone()


def put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """Elements written, or added, at places of the flattened x."""
    spots: list[Tensor | None] = [index.reshape(-1)]
    return x.reshape(-1).index_put(spots, source.reshape(-1), accumulate).view(x.shape)


def index_put(
    x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """What a mask selects gets one value each: no element has to know how many there are."""
    own = [i for i in indices if i is not None]
    if len(own) != 1 or own[0].dtype != torch.bool:
        return NotImplemented
    mask, first = own[0], next(d for d, i in enumerate(indices) if i is not None)
    after = x.dim() - first - mask.dim()  # axes that follow those of the mask
    if values.dim() > after:
        count: Any = values.shape[-after - 1]
        if not isinstance(count, int) or count != 1:
            return NotImplemented
        axis = values.dim() - after - 1
        shape = [*values.shape[:axis], *[1] * mask.dim(), *values.shape[axis + 1 :]]
        values = values.reshape(shape)
    if accumulate:
        values = x + values
    return torch.where(mask.reshape(*mask.shape, *[1] * after), values, x)


def embedding_bag_backward(
    grad: Tensor, ids: Tensor, offsets: Tensor, belongs: Tensor, sizes: Tensor, maxima: Tensor,
    rows: int, by_frequency: bool, mode: int, sparse: bool, weights: Tensor | None,
    padding: int = -1,
) -> Tensor:  # fmt: skip
    """A sparse gradient is a dense one here: noise falls on every row."""
    if not sparse:
        return NotImplemented
    given = (grad, ids, offsets, belongs, sizes, maxima, rows, by_frequency, mode)
    return aten._embedding_bag_backward(*given, False, weights, padding)


def full_like(x: Tensor, value: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """x gives nothing but its shape; where that may hold the samples it says where, too."""
    if any(isinstance(size, torch.SymInt) for size in x.shape):
        return NotImplemented
    return aten.full(x.shape, value, dtype=dtype or x.dtype, device=x.device)


def zeros(size: list[int], **options: Any) -> Tensor:
    """Zeros without memory, as forward mode has them for a tangent that nobody gave."""
    return aten.zeros(size, **options)


def trilinear(
    a: Tensor, b: Tensor, c: Tensor, expand1: list[int], expand2: list[int], expand3: list[int],
    sum_dims: list[int], unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """A product of three tensors, each with axes of size 1 put in, summed over some axes."""
    for d in sorted(expand1):
        a = a.unsqueeze(d)
    for d in sorted(expand2):
        b = b.unsqueeze(d)
    for d in sorted(expand3):
        c = c.unsqueeze(d)
    product = a * b * c
    return product.sum(sum_dims) if sum_dims else product


def weight_norm_backward(
    grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Gradients of w = g v / |v|, the norm over all axes but `dim`."""
    rest = [d for d in range(v.dim()) if d != dim % v.dim()]
    along = (grad * v).sum(rest, keepdim=True) / norms
    return grad * (g / norms) - v * (along * g / (norms * norms)), along


def nll_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int,
    ignore_index: int, total_weight: Tensor,
) -> Tensor:  # fmt: skip
    """-weight[target] at the target's class, whatever axes follow the classes."""
    if reduction == 1:
        grad = grad / total_weight
    axis = 0 if x.dim() < 2 else 1
    valid = target != ignore_index
    safe = torch.where(valid, target, 0)
    if weight is not None:
        grad = grad * weight[safe]
    each = torch.where(valid, grad, torch.zeros((), dtype=x.dtype, device=x.device))
    return torch.zeros_like(x).scatter(axis, safe.unsqueeze(axis), -each.unsqueeze(axis))


def fractional_max_pool_backward(
    grad: Tensor, x: Tensor, kernel: list[int], sizes: list[int], indices: Tensor
) -> Tensor:
    """Each maximum's gradient, added at its place in its plane or volume."""
    axes = -len(kernel)
    zeros = torch.zeros_like(x).flatten(axes)
    return zeros.scatter_add(-1, indices.flatten(axes), grad.flatten(axes)).view(x.shape)


def median_dim(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    """Where an axis is repeated without a copy, torch's kernel for the CPU reads wrong memory:
    other samples', and what lies behind. So it gets a copy."""
    strides: tuple[Any, ...] = x.stride()
    if not any(isinstance(stride, int) and stride == 0 for stride in strides):
        return NotImplemented
    return aten.median.dim(x.clone(memory_format=torch.contiguous_format), dim, keepdim)


# What torch's core decompositions would split into more than the rules need.
KEPT = (
    # Its decomposition returns a logsumexp that the kernel of its backward does not understand.
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten.embedding_dense_backward.default,
    aten._adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool3d.default,
    aten.max_pool2d_with_indices_backward.default,
    aten._softmax_backward_data.default,
    aten._log_softmax_backward_data.default,
    aten.var.correction,
    aten.std.correction,
    aten.linalg_vector_norm.default,  # since torch 2.14 there is one
    # Theirs count the planes of all samples to find an element's place.
    aten.max_unpool2d.default,
    aten.max_unpool3d.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    aten.reflection_pad1d_backward.default,
    aten.reflection_pad2d_backward.default,
    aten.reflection_pad3d_backward.default,
    # One op each, which is as linear in the gradient as its parts.
    *(
        getattr(aten, f"{name}_backward").default
        for name in (
            "elu",
            "gelu",
            "hardsigmoid",
            "hardswish",
            "hardtanh",
            "leaky_relu",
            "log_sigmoid",
            "mish",
            "sigmoid",
            "silu",
            "softplus",
            "tanh",
            "threshold",
        )
    ),
    # Theirs start from zeros, of which no one can tell how the samples lie in them.
    aten.slice_backward.default,
    aten.select_backward.default,
)

OWN: dict[OpOverload, Callable[..., Any]] = {
    aten.addmm.default: addmm,
    aten.baddbmm.default: baddbmm,
    aten.mean.default: mean,
    aten.mean.dim: mean_dim,
    aten.median.dim: median_dim,
    aten.convolution_backward.default: convolution_backward,
    aten._weight_norm_interface_backward.default: weight_norm_backward,
    aten.nll_loss_backward.default: nll_loss_backward,
    aten.nll_loss2d_backward.default: nll_loss_backward,
    aten.fractional_max_pool2d_backward.default: fractional_max_pool_backward,
    aten.fractional_max_pool3d_backward.default: fractional_max_pool_backward,
    aten.dot.default: dot,
    aten.mv.default: mv,
    aten.copy.default: copy,
    aten.put.default: put,
    aten.index_put.default: index_put,
    aten._embedding_bag_backward.default: embedding_bag_backward,
    aten.full_like.default: full_like,
    aten._trilinear.default: trilinear,
    aten._efficientzerotensor.default: zeros,
}

# Outside torch's core set, but with a decomposition there.
MORE = (
    aten._safe_softmax,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_functional,
    aten._native_batch_norm_legit_no_training,
    aten.native_batch_norm_backward,
    aten.addr,
    aten.addcmul,
    aten.addcdiv,
)

DECOMPOSITIONS: dict[Any, Callable[..., Any]] = (
    {op: function for op, function in core_aten_decompositions().items() if op not in KEPT}
    | get_decompositions(MORE)
    | OWN
)


def opaque_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """A convolution with the samples among its groups, kept out of Inductor's hands."""
    if not isinstance(groups, torch.SymInt):
        return NotImplemented
    how = (*each_way(weight, stride, padding, dilation, output_padding), groups)
    out = convolution(x, weight, *how[:3], transposed, *how[3:])
    return out if bias is None else out + bias.reshape(1, -1, *[1] * (x.dim() - 2))


def opaque_convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, sizes: list[int] | None, stride: list[int],
    padding: list[int], dilation: list[int], transposed: bool, output_padding: list[int],
    groups: int, mask: list[bool],
) -> Any:  # fmt: skip
    """The same for its gradients, each by itself."""
    if not isinstance(groups, torch.SymInt) or mask[2]:
        return NotImplemented
    how = each_way(weight, stride, padding, dilation, output_padding)
    rest = (*how[:3], transposed, how[3], groups)
    own = convolution_input(grad, list(x.shape), weight, *rest) if mask[0] else None
    weights = convolution_weight(grad, x, list(weight.shape), *rest) if mask[1] else None
    return own, weights, None


def each_way(weight: Tensor, *moves: list[int]) -> list[list[int]]:
    """A number for each axis of the kernel, where one may be given for all."""
    axes = weight.dim() - 2
    return [list(m) if len(m) == axes else list(m) * axes for m in moves]


def opaque_max_pool_backward(
    g: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int], ceil: bool, indices: Tensor,
) -> Any:  # fmt: skip
    """torch's own kernel on a CPU: the code that Inductor writes takes several times as long."""
    if x.device.type != "cpu":
        return NotImplemented
    return max_pool2d_backward(g, x, kernel, stride, padding, dilation, ceil, indices)


# Inductor makes a number of groups a constant, and with it the batch size that is a part of it.
FOR_INDUCTOR: dict[OpOverload, Callable[..., Any]] = {
    aten.max_pool2d_with_indices_backward.default: opaque_max_pool_backward,
    aten.convolution.default: opaque_convolution,
    aten.convolution_backward.default: opaque_convolution_backward,
}
