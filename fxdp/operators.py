"""The custom ops that fxdp writes into graphs.

`samples`, `release` and `shown` are marks: they say which axis of an input holds the samples,
where the loss leaves the model, with everything the release needs, and what else the caller gets
to see. `seed` is the gradient of `release`. They compute nothing, and no compiled graph has them:
`localize` and `lower` replace them. So where one is called with numbers, torch runs the captured
program itself, and not what fxdp made of it: they raise. `loop_outer`, `loop_conv` and
`replicas_conv` are behind the strategies "naive" and "multi"; the convolutions are those whose
groups hold the batch. `matrix_exp` has a backward pass in one piece.
"""

from typing import Any

import torch
from torch import Tensor

from fxdp.definition import define, fake
from fxdp.errors import NotCompiled


@torch.library.custom_op("fxdp::samples", mutates_args=())
def samples(x: Tensor, dim: int) -> Tensor:
    """x, whose axis `dim` holds the samples."""
    raise NotCompiled


@samples.register_fake
def _(x: Tensor, dim: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fxdp::shown", mutates_args=())
def shown(x: Tensor) -> Tensor:
    """x, which the caller gets to see; whatever else leaves the graph is kept by the model."""
    raise NotCompiled


@shown.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fxdp::release", mutates_args=())
def release(
    loss: Tensor, bound: Tensor, noise: Tensor, expected: Tensor, key: Tensor, mask: Tensor,
    reduction: str = "",
) -> Tensor:  # fmt: skip
    """The loss as the user gets it; or what the user makes a loss of.

    Args:
        loss: 0-d or [N]; with a reduction [N, ...], the model's output.
        bound: the clip bound C, 0-d.
        noise: the noise multiplier, 0-d.
        expected: the public batch size that the released sum is divided by, 0-d.
        key: int64 [2], which decides the noise.
        mask: [N] bool, False for rows that are padding.
        reduction: "mean" or "sum", how the user's loss puts those of the rows together.
    """
    raise NotCompiled


@release.register_fake
def _(
    loss: Tensor, bound: Tensor, noise: Tensor, expected: Tensor, key: Tensor, mask: Tensor,
    reduction: str = "",
) -> Tensor:  # fmt: skip
    return torch.empty_like(loss) if reduction else loss.new_empty(())


@torch.library.custom_op("fxdp::seed", mutates_args=())
def seed(tangent: Tensor, loss: Tensor, mask: Tensor, reduction: str = "") -> Tensor:
    """The gradient of the sum of local losses by what was handed out.

    Of the losses themselves: ones. Of a model's output, with a reduction: what arrived there,
    times the number of rows that a mean divided it by.
    """
    raise NotCompiled


@seed.register_fake
def _(tangent: Tensor, loss: Tensor, mask: Tensor, reduction: str = "") -> Tensor:
    return torch.empty_like(loss)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor):
    ctx.save_for_backward(inputs[0])


def _keep_release(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Any, ...], output: Tensor
) -> None:
    ctx.save_for_backward(inputs[0], inputs[5])
    ctx.reduction = inputs[6]  # type: ignore[attr-defined]


def _release_backward(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
    loss, mask = ctx.saved_tensors
    seeded = torch.ops.fxdp.seed(tangent, loss, mask, ctx.reduction)
    return seeded, None, None, None, None, None, None


# An input that wants a gradient gets one in the graph, so that the proof can refuse it.
samples.register_autograd(lambda ctx, g: (g, None))
release.register_autograd(_release_backward, setup_context=_keep_release)


@define("loop_outer")
def loop_outer(a: Tensor, b: Tensor) -> Tensor:
    """[N, i, o] from a [N, t, i] and b [N, t, o], one sample after the other."""
    if not len(a):
        return a.new_zeros(0, a.shape[-1], b.shape[-1])
    return torch.stack([x.T @ y for x, y in zip(a, b, strict=True)])


@fake("loop_outer")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[-1], b.shape[-1])


def _weight_of_one(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """[*weight], the gradient of one sample x [t, C, ...] with g [t, D, ...]."""
    shape = x.new_zeros(()).expand(weight)
    rest = (stride, padding, dilation, False, [0] * len(stride), groups, [False, True, False])
    return torch.ops.aten.convolution_backward(g, x, shape, None, *rest)[1]


@define("loop_conv")
def loop_conv(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """[N, *weight] from x [N, t, C, ...] and g [N, t, D, ...], one sample after the other."""
    spec = (weight, stride, padding, dilation, groups)
    each = [_weight_of_one(xi, gi, *spec) for xi, gi in zip(x, g, strict=True)]
    return torch.stack(each) if each else x.new_zeros(0, *weight)


@define("replicas_conv")
def replicas_conv(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """The same by `torch.vmap`, whose rule for convolutions would make N a constant if traced."""
    spec = (weight, stride, padding, dilation, groups)
    return torch.vmap(lambda xi, gi: _weight_of_one(xi, gi, *spec))(x, g).contiguous()


@fake("loop_conv")
@fake("replicas_conv")
def _(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], *weight)


@define("convolution")
def convolution(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Tensor:  # fmt: skip
    """A convolution whose number of groups is symbolic: Inductor's own would fix it."""
    flat = [0] * len(stride)
    return torch.ops.aten.convolution(
        x, weight, None, stride, padding, dilation, False, flat, groups
    ).contiguous()


@fake("convolution")
def _(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Tensor:  # fmt: skip
    sizes = [
        (h + 2 * p - d * (k - 1) - 1) // s + 1
        for h, p, d, k, s in zip(
            x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    return x.new_empty(x.shape[0], weight.shape[0], *sizes)


@define("convolution_weight")
def convolution_weight(
    g: Tensor, x: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """The weight gradient of a convolution whose number of groups is symbolic."""
    shape = x.new_zeros(()).expand(weight)
    flat = [0] * len(stride)
    return torch.ops.aten.convolution_backward(
        g, x, shape, None, stride, padding, dilation, False, flat, groups, [False, True, False]
    )[1].contiguous()


@fake("convolution_weight")
def _(
    g: Tensor, x: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(weight)


@torch.library.custom_op("fxdp::matrix_exp", mutates_args=())
def matrix_exp(x: Tensor) -> Tensor:
    """`torch.matrix_exp`, the gradient of which is one op."""
    return torch.linalg.matrix_exp(x).contiguous()


@define("matrix_exp_backward")
def matrix_exp_backward(g: Tensor, x: Tensor) -> Tensor:
    """The gradient of the exponential of x, linear in g: a block of the exponential of
    [[x^H, g], [0, x^H]] (Al-Mohy and Higham 2009, eq. 1.1)."""
    turned, size = x.mH.expand(g.shape), x.shape[-1]
    upper = torch.cat([turned, g], -1)
    lower = torch.cat([torch.zeros_like(g), turned], -1)
    both = torch.linalg.matrix_exp(torch.cat([upper, lower], -2))
    return both[..., :size, size:].contiguous()


@matrix_exp.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@fake("matrix_exp_backward")
def _(g: Tensor, x: Tensor) -> Tensor:
    return g.new_empty(g.shape)


matrix_exp.register_autograd(
    lambda ctx, g: torch.ops.fxdp.matrix_exp_backward(g, ctx.saved_tensors[0]),
    setup_context=_keep,
)
