"""The step that is captured: the model, its loss, and the marks on both."""

import itertools
import types
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fxdp.capture.inputs import TARGET
from fxdp.diagnostics.errors import NoLoss
from fxdp.graph import marks
from fxdp.torch_internals import (
    pytree,
    torch_check,
)

COMPLEX = "a complex loss, and a loss must be real"


class Step(nn.Module):
    """What is captured: the model, its loss, and the marks around them."""

    def __init__(
        self, model: nn.Module, loss_fn: Callable[..., Any] | None, reduction: str = ""
    ) -> None:
        super().__init__()
        self.fxdp_model = model
        self.loss_fn = loss_fn
        self.reduction = reduction

    def forward(
        self, scales: tuple[Tensor, ...], mask: Tensor, leaves: tuple[Any, ...],
        dims: tuple[Any, ...], spec: Any, owners: tuple[Tensor, ...],
    ) -> tuple[Tensor, Any]:  # fmt: skip
        mask = marks.owned(mask, list(owners)) if owners else mask
        marked: list[Any] = []
        for leaf, dim in zip(leaves, dims, strict=True):
            if isinstance(dim, tuple):
                kind, axis, dim, to = dim
                same = mask if kind == "starts" else owners[axis]
                torch_check(leaf.shape[dim] == same.shape[0])
                leaf = marks.ragged(leaf, owners[axis], owners[to], dim, kind)
            elif dim is not None:
                torch_check(leaf.shape[dim] == mask.shape[0])
                leaf = marks.samples(leaf, dim)
            marked.append(leaf)
        args, kwargs = pytree.tree_unflatten(marked, spec)
        loss, others = local_loss(self.fxdp_model, self.loss_fn, args, kwargs, self.reduction)
        source = "loss_fn" if self.loss_fn is not None else "the model"
        check_loss(loss, source, self.reduction)
        others = pytree.tree_map_only(Tensor, shown, others)
        return marks.release(loss, *scales, mask, self.reduction), others


STEPS = itertools.count()


def own_step(model: nn.Module, loss_fn: Callable[..., Any] | None, reduction: str = "") -> Step:
    """A step whose code has a name of its own.

    torch.compile remembers by the name of a function which sizes changed between its calls:
    one model's sizes are not to make another's dynamic.
    """
    name = f"forward_{next(STEPS)}"
    code = Step.forward.__code__.replace(co_name=name, co_qualname=f"Step.{name}")
    forward = types.FunctionType(code, Step.forward.__globals__, name)
    return type("Step", (Step,), {"forward": forward})(model, loss_fn, reduction)


def local_loss(
    model: Callable[..., Any],
    loss_fn: Callable[..., Any] | None,
    args: Any,
    kwargs: Any,
    reduction: str = "",
) -> tuple[Any, Any]:
    """The loss of a step, and what else the model returned: a dict, or what came before the loss
    and what came after it.

    Raises:
        NoLoss: with a reduction, something other than the output has a gradient, which a loss that
            is computed outside might need.
    """
    if loss_fn is not None:
        if TARGET in kwargs:
            kwargs = dict(kwargs)
            target = kwargs.pop(TARGET)
        else:
            *args, target = args
        return loss_fn(model(*args, **kwargs), target), None
    out = model(*args, **kwargs)
    if isinstance(out, Tensor):
        return out, None
    if isinstance(out, dict) or hasattr(out, "loss"):
        named = dict(out.items() if hasattr(out, "items") else vars(out).items())
        loss = named.pop("loss", None)
        # Other objects (a cache of keys and values) hold tensors that no mark could reach.
        named = {k: v for k, v in named.items() if isinstance(v, Tensor | tuple | list | dict)}
        check_alone(named, reduction)
        return loss, named
    if isinstance(out, list | tuple) and len(out) > 0:
        place = 0 if reduction else loss_place(out)
        others = (tuple(out[:place]), tuple(out[place + 1 :]))
        check_alone(others, reduction)
        return out[place], others
    return out, None


def loss_place(results: Sequence[Any]) -> int:
    """Which of several results is the loss: the only 0-d one with a gradient, else the first."""
    scalars = [
        i for i, x in enumerate(results)
        if isinstance(x, Tensor) and x.dim() == 0 and x.requires_grad
    ]  # fmt: skip
    return scalars[0] if len(scalars) == 1 else 0


def check_alone(others: Any, reduction: str) -> None:
    """With a reduction, the output must be the one result that has a gradient.

    Raises:
        NoLoss: it is not.
    """
    for leaf in pytree.tree_leaves(others) if reduction else ():
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            raise NoLoss(
                "with loss_reduction one output of the model is released, and it returned several "
                "that require a gradient: make the loss of them in the model or in a loss_fn, or "
                "join them to one output, or detach all but the first"
            )


def check_loss(loss: Any, source: str, reduction: str = "") -> None:
    """A loss must be a tensor of real numbers that some parameter has a part in.

    Args:
        reduction: with one, this is no loss yet, and may be complex.

    Raises:
        NoLoss: it is not.
    """
    if not isinstance(loss, Tensor):
        raise NoLoss(f"{source} returned a {type(loss).__name__} where a loss is needed")
    if not loss.requires_grad:
        raise NoLoss(f"{source} returned a loss that depends on no trainable parameter")
    if loss.is_complex() and not reduction:
        raise NoLoss(f"{source} returned {COMPLEX}")


def shown(x: Tensor) -> Tensor:
    """x as the caller gets it: marked, so that what the model keeps to itself stands out."""
    return marks.shown(x.detach())
