"""The exponential of a matrix, with a backward pass in one piece."""

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor):
    ctx.save_for_backward(inputs[0])


@torch.library.custom_op("fxdp::matrix_exp", mutates_args=())
def _matrix_exp(x: Tensor) -> Tensor:
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


@_matrix_exp.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@fake("matrix_exp_backward")
def _(g: Tensor, x: Tensor) -> Tensor:
    return g.new_empty(g.shape)


_matrix_exp.register_autograd(
    lambda ctx, g: matrix_exp_backward(g, ctx.saved_tensors[0]),
    setup_context=_keep,
)

matrix_exp = torch.ops.fxdp.matrix_exp
