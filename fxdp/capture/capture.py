"""What a step is called with, and how it is captured.

The arguments of a step are flattened to tensors, each with the axis of its samples; the batch
size is checked, small batches are padded, and the step marks inputs and loss for the pipeline.
"""

import contextlib
import inspect
import itertools
import logging
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxdp.capture.polyfills import symbolic_kernels
from fxdp.capture.totals import check_total
from fxdp.diagnostics.errors import NoLoss
from fxdp.graph import marks
from fxdp.proof.guards import one_kernel, users_lines
from fxdp.torch_internals import (
    IgnoredFunctions,
    OptimizeContext,
    compile_lock,
    dynamo_config,
    optimize,
    pytree,
    shapes_config,
    torch_check,
)

BatchDims = Mapping[str, int | None] | int
TARGET = "target"
SMALLEST = 2  # torch.compile gives sizes 0 and 1 graphs of their own


@dataclass(frozen=True)
class Inputs:
    """The arguments of a step, flattened.

    Attributes:
        leaves: tensors, and constants that no sample depends on.
        dims: for each leaf the axis of its samples; None for constants and shared tensors.
        names: for each leaf, the argument it came with.
        spec: how to put them together again.
        size: the number of samples.
    """

    leaves: tuple[Any, ...]
    dims: tuple[int | None, ...]
    names: tuple[str, ...]
    spec: Any
    size: int

    @property
    def device(self) -> torch.device:
        return next(x.device for x, d in zip(self.leaves, self.dims, strict=True) if d is not None)

    def part(self, start: int, stop: int) -> "Inputs":
        """The same arguments with the samples from `start` to `stop` alone."""
        leaves = [
            x if d is None else x.narrow(d, start, stop - start)
            for x, d in zip(self.leaves, self.dims, strict=True)
        ]
        return replace(self, leaves=tuple(leaves), size=stop - start)

    def resized(self, rows: int) -> "Inputs":
        """The same arguments with `rows` samples, the first one repeated or zeros added."""
        leaves = [
            x if d is None else padded(x, d, rows)
            for x, d in zip(self.leaves, self.dims, strict=True)
        ]
        return replace(self, leaves=tuple(leaves), size=rows)


def padded(x: Tensor, dim: int, rows: int) -> Tensor:
    """x with `rows` samples on axis `dim`."""
    missing = rows - x.shape[dim]
    if x.shape[dim] > 0:
        return torch.cat([x, x.narrow(dim, 0, 1).repeat_interleave(missing, dim)], dim)
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_zeros(shape)], dim)


def gather(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch_dims: BatchDims,
    has_target: bool,
) -> Inputs:  # fmt: skip
    """Flatten and check the arguments of a step.

    Raises:
        TypeError: an argument that should hold samples is no tensor, or an axis no integer.
        ValueError: the arguments disagree on the number of samples, or none holds samples, or one
            is a total of the batch.
    """
    keys = argument_names(model, args, kwargs, has_target)
    if isinstance(batch_dims, Mapping) and (unknown := set(batch_dims) - set(keys)):
        raise ValueError(f"batch_dims names {sorted(unknown)}, but the arguments are {keys}")
    axes: list[Any] = list(batch_dims.values()) if isinstance(batch_dims, Mapping) else [batch_dims]
    for axis in axes:
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
            raise TypeError(f"batch_dims must name axes by integers, not {axis!r}")
    leaves: list[Any] = []
    dims: list[int | None] = []
    names: list[str] = []
    for key, value in zip(keys, (*args, *kwargs.values()), strict=True):
        wanted = batch_dims.get(key, 0) if isinstance(batch_dims, Mapping) else batch_dims
        check_total(key, value, wanted)
        flat = pytree.tree_leaves(value)
        for leaf in flat:
            leaves.append(leaf)
            names.append(key)
            dims.append(sample_axis(key, leaf, wanted, alone=len(flat) == 1 and leaf is value))
    spec = pytree.tree_structure((args, kwargs))
    sizes = {n: x.shape[d] for x, d, n in zip(leaves, dims, names, strict=True) if d is not None}
    if not sizes:
        raise ValueError("no argument holds samples: pass at least one tensor with a batch axis")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{n} has {s}" for n, s in sizes.items())
        raise ValueError(
            f"the arguments disagree on the number of samples: {listed}; give all of them the "
            "same, or say in batch_dims which axis is the batch's"
        )
    return Inputs(tuple(leaves), tuple(dims), tuple(names), spec, next(iter(sizes.values())))


def sample_axis(key: str, leaf: Any, wanted: int | None, alone: bool) -> int | None:
    """The axis of the samples of one tensor, or None for what all samples share."""
    if not isinstance(leaf, Tensor):
        if leaf is None or (alone and isinstance(leaf, bool | int | float | str)):
            return None
        raise TypeError(
            f"argument {key!r} holds a {type(leaf).__name__}; samples must come as tensors "
            "(torch.as_tensor makes one)"
        )
    if leaf.requires_grad:
        raise ValueError(
            f"argument {key!r} requires a gradient, which would leave without noise: detach it"
        )
    if wanted is None:
        return None
    if leaf.dim() == 0 or not -leaf.dim() <= wanted < leaf.dim():
        raise ValueError(
            f"argument {key!r} of shape {tuple(leaf.shape)} has no axis {wanted} for its samples: "
            f"say which axis holds them with batch_dims={{{key!r}: ...}}, None if all share it"
        )
    return wanted % leaf.dim()


def argument_names(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], has_target: bool
) -> list[str]:
    """The names of the arguments, by the signature of the model's forward."""
    own = args[:-1] if has_target and TARGET not in kwargs else args
    named = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    keys = [named[i] if i < len(named) else f"args[{i}]" for i in range(len(own))]
    return [*keys, *([TARGET] if len(own) < len(args) else []), *kwargs]


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
        dims: tuple[int | None, ...], spec: Any,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        marked: list[Any] = []
        for leaf, dim in zip(leaves, dims, strict=True):
            if dim is not None:
                torch_check(leaf.shape[dim] == mask.shape[0])
                leaf = marks.samples(leaf, dim)
            marked.append(leaf)
        args, kwargs = pytree.tree_unflatten(marked, spec)
        loss, others = local_loss(self.fxdp_model, self.loss_fn, args, kwargs, self.reduction)
        check_loss(loss, "loss_fn" if self.loss_fn is not None else "the model")
        return marks.release(loss, *scales, mask, self.reduction), others


STEPS = itertools.count()
SHAPES: Any = shapes_config


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
    model: nn.Module,
    loss_fn: Callable[..., Any] | None,
    args: Any,
    kwargs: Any,
    reduction: str = "",
) -> tuple[Any, Any]:
    """The loss of a step, and what the model returned beside it, cut off from gradients.

    Raises:
        NoLoss: with a reduction, something beside the output has a gradient, which a loss that is
            made outside might want.
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
        return loss, pytree.tree_map_only(Tensor, shown, named)
    if isinstance(out, list | tuple) and len(out) > 0:
        check_alone(out[1:], reduction)
        return out[0], pytree.tree_map_only(Tensor, shown, tuple(out[1:]))
    return out, None


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


def check_loss(loss: Any, source: str) -> None:
    """A loss must be a tensor of numbers that some parameter has a part in.

    Raises:
        NoLoss: it is not.
    """
    if not isinstance(loss, Tensor):
        raise NoLoss(f"{source} returned a {type(loss).__name__} where a loss is needed")
    if not loss.requires_grad:
        raise NoLoss(f"{source} returned a loss that depends on no trainable parameter")


def shown(x: Tensor) -> Tensor:
    """x as the caller gets it: marked, so that what the model keeps to itself stands out."""
    return marks.shown(x.detach())


MOST_GRAPHS = 64  # that one model may have, for sizes and modes that the proof cannot merge


def logging_functions() -> set[Any]:
    """What writes to a log, and may be left out of a captured step."""
    names = ("debug", "info", "warning", "error", "warning_once", "info_once", "warning_advice")
    return {getattr(logging.Logger, name) for name in names if hasattr(logging.Logger, name)}


Captures = Callable[[], contextlib.AbstractContextManager[None]]


class Captured:
    """What torch calls for a frame that it has no code for, within settings.

    The settings are global, so they are entered while something is captured and at no other time,
    by one thread at a time.
    """

    def __init__(self, convert: Any, within: Captures) -> None:
        self.convert, self.within = convert, within
        # By which torch tells whose code it is.
        self._torchdynamo_orig_backend = convert._torchdynamo_orig_backend

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with compile_lock, self.within():
            return self.convert(*args, **kwargs)


def captured_within(
    step: nn.Module, backend: Callable[..., Any], within: Captures
) -> Callable[..., Any]:
    """`torch.compile(step, backend=backend, fullgraph=True)`, captured within settings."""
    context: Any = optimize(backend, nopython=True)
    if isinstance(context, OptimizeContext):  # else torch is told not to compile
        context.callback = Captured(context.callback, within)
    return context(step)


@contextlib.contextmanager
def capture_settings(dynamic: bool = True) -> Iterator[None]:
    """Settings of torch under which a step is captured.

    With `dynamic`, sizes that change between steps become symbols.

    Sizes that happen to be equal stay different symbols; recurrent layers are traced; and what a
    model writes to a log does not break its graph.
    """
    with (
        SHAPES.patch(use_duck_shape=False),
        dynamo_config.patch(
            {
                "allow_rnn": True,
                "automatic_dynamic_shapes": dynamic,
                "recompile_limit": MOST_GRAPHS,
                "ignore_logging_functions": IgnoredFunctions(logging_functions()),
            }
        ),
        # With opt_einsum, a product of three tensors makes their sizes constants.
        torch.backends.opt_einsum.flags(enabled=False),
        users_lines(),
        one_kernel(),
        symbolic_kernels(),
    ):
        yield
