"""Marker ops in a captured step: the axis of an input that holds the samples (`samples`) or rows of
theirs (`ragged`), whose all rows are (`owned`), the point where the loss leaves the model, with
everything that the release needs (`release`), and what else the caller gets to see (`shown`).
`seed` is the gradient of `release`.

They compute nothing, and no compiled graph has them: `localize` and `lower` replace them. So where
one is called with numbers, torch runs the captured program itself, and not what fxdp made of it:
they raise.
"""

from typing import Any

import torch
from torch import Tensor

from fxdp.diagnostics.errors import NotCompiled


@torch.library.custom_op("fxdp::samples", mutates_args=())
def _samples(x: Tensor, dim: int) -> Tensor:
    """x, whose axis `dim` holds the samples."""
    raise NotCompiled


@_samples.register_fake
def _(x: Tensor, dim: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fxdp::ragged", mutates_args=())
def _ragged(x: Tensor, owner: Tensor, target: Tensor, dim: int, kind: str) -> Tensor:
    """x, which holds rows, or says whose they are.

    Args:
        owner: int64 [R], the sample of each row.
        target: the same of the rows that x points to, where it does; `owner`, where not.
        dim: the axis of x that is R long; 0 of starts.
        kind: "rows", "owner", "pointer" or "starts", as `fxdp.placement` has them.
    """
    raise NotCompiled


@_ragged.register_fake
def _(x: Tensor, owner: Tensor, target: Tensor, dim: int, kind: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fxdp::owned", mutates_args=())
def _owned(mask: Tensor, owners: list[Tensor]) -> Tensor:
    """mask, which the release has: so a graph knows of rows of which it reads the number alone.

    Args:
        owners: int64 [R] each, the samples of the rows of every ragged axis.
    """
    raise NotCompiled


@_owned.register_fake
def _(mask: Tensor, owners: list[Tensor]) -> Tensor:
    return torch.empty_like(mask)


@torch.library.custom_op("fxdp::shown", mutates_args=())
def _shown(x: Tensor) -> Tensor:
    """x, which the caller gets to see; whatever else leaves the graph is kept by the model."""
    raise NotCompiled


@_shown.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fxdp::release", mutates_args=())
def _release(
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


@_release.register_fake
def _(
    loss: Tensor, bound: Tensor, noise: Tensor, expected: Tensor, key: Tensor, mask: Tensor,
    reduction: str = "",
) -> Tensor:  # fmt: skip
    return torch.empty_like(loss) if reduction else loss.new_empty(())


@torch.library.custom_op("fxdp::seed", mutates_args=())
def _seed(tangent: Tensor, loss: Tensor, mask: Tensor, reduction: str = "") -> Tensor:
    """The gradient of the sum of local losses by what was handed out.

    Of the losses themselves: ones. Of a model's output, with a reduction: what arrived there,
    times the number of rows that a mean divided it by.
    """
    raise NotCompiled


@_seed.register_fake
def _(tangent: Tensor, loss: Tensor, mask: Tensor, reduction: str = "") -> Tensor:
    return torch.empty_like(loss)


def _keep_release(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Any, ...], output: Tensor
) -> None:
    ctx.save_for_backward(inputs[0], inputs[5])
    ctx.reduction = inputs[6]  # type: ignore[attr-defined]


def _release_backward(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
    loss, mask = ctx.saved_tensors
    seeded = seed(tangent, loss, mask, ctx.reduction)
    return seeded, None, None, None, None, None, None


# An input that wants a gradient gets one in the graph, so that the proof can refuse it.
_samples.register_autograd(lambda ctx, g: (g, None))
_ragged.register_autograd(lambda ctx, g: (g, None, None, None, None))
_release.register_autograd(_release_backward, setup_context=_keep_release)

# As they stand in graphs.
samples = torch.ops.fxdp.samples
ragged = torch.ops.fxdp.ragged
owned = torch.ops.fxdp.owned
shown = torch.ops.fxdp.shown
release = torch.ops.fxdp.release
seed = torch.ops.fxdp.seed
