"""The arguments and the loss of one step of a model: as given, or as assumed and said."""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxdp.capture.inputs import TARGET, BatchDims, argument_names
from fxdp.lint.models import hugging
from fxdp.lint.models.building import Built, Given, moved
from fxdp.lint.models.inputs import ROWS, make, parse, sample_axis, written
from fxdp.lint.models.loading import beside, find, load_file, load_module, package_of
from fxdp.lint.models.losses import LOSSES, OF_CLASSES, Loss, own_loss, target_for
from fxdp.lint.models.seen import Seen
from fxdp.lint.models.shapes import needed
from fxdp.lint.models.suggesting import command, inputs
from fxdp.lint.models.wanted import Wanted
from fxdp.lint.trouble import Lacking, Trouble
from fxdp.torch_internals import pytree

NONE = "none"


@dataclass(frozen=True)
class Step:
    """What a model is proven on.

    Attributes:
        args, kwargs: of the step; the target among them where there is a loss.
        loss_fn: None where the model returns its loss.
        batch_dims: where the samples are.
        assumed: what nobody said, in sentences without a full stop.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss_fn: Loss | None
    batch_dims: BatchDims
    assumed: tuple[str, ...]


def step(built: Built, wanted: Wanted) -> Step:
    """The step that a model is to be proven on, of tensors like its own.

    Raises:
        Trouble: what it takes is not known, or does not go together.
    """
    with built.mode or contextlib.nullcontext():
        return completed(built, wanted)


def completed(built: Built, wanted: Wanted) -> Step:
    """The step that a model is to be proven on.

    Raises:
        Trouble: what it takes is not known, or does not go together.
    """
    given, dims, assumed = arguments(built, wanted)
    assumed = (*built.assumed, *assumed)
    args, kwargs = given.args, dict(given.kwargs)
    if wanted.batch_dims is not None:
        dims = wanted.batch_dims
    if wanted.loss == NONE or (given.loss is not None and wanted.loss is None):
        return Step(args, kwargs, given.loss, dims, assumed)
    seen = None if spoken(wanted) else Seen.of(built.model, args, kwargs)
    if wanted.loss is None and wanted.target is None:
        own = seen is None or own_loss(seen.out) is not None
        out = seen.scores() if seen is not None and not own else None
        if out is None:
            return Step(args, kwargs, None, dims, assumed)
        name = "cross_entropy" if out.shape[-1] > 1 else "mse"
        what = " over the last axis" if name in OF_CLASSES else ""
        assumed += (f"the loss is {name}{what}, as the model returns {written(out)} and no loss",)
        return finished(given, dims, assumed, LOSSES[name], target_for(name, out))
    target = None
    if wanted.target is not None:
        spec = parse(wanted.target)
        target = make([spec], built.device).args[0] if spec.name is None else None
        if target is None:
            raise Trouble("--target takes no name: f32[N] or i64[N,T=128]")
        dims = with_axis(dims, sample_axis(spec, named=False))
    name = wanted.loss
    if name is None:
        assert target is not None
        name = "mse" if target.is_floating_point() else "cross_entropy"
        assumed += (f"the loss is {name}, as the target is {written(target)}",)
    if target is None:
        out = seen.scores() if seen else None
        target = torch.zeros(ROWS, dtype=torch.int64, device=built.device)
        if out is not None:
            target = target_for(name, out)
            assumed += (f"the target is {written(target)}",)
    return finished(given, dims, assumed, loss_function(name), target)


def spoken(wanted: Wanted) -> bool:
    """Is what the model returns of no interest, as loss and target are given?"""
    return wanted.loss is not None and wanted.target is not None


def arguments(built: Built, wanted: Wanted) -> tuple[Given, BatchDims, tuple[str, ...]]:
    """The arguments of a step, the axes of their samples, and what is assumed of them."""
    if wanted.inputs:
        made = make([parse(text) for text in wanted.inputs], built.device)
        keys = argument_names(built.model, made.args, made.kwargs, has_target=False)
        dims = dict(zip(keys, made.dims, strict=True))
        same = all(d == 0 for d in made.dims)
        return Given(made.args, made.kwargs), 0 if same else dims, ()
    if built.given is not None:
        return moved(built.given, built), 0, ()
    if (usual := hugging.usual(built.model, built.device)) is not None:
        told = ", ".join(f"{k}={written(v)}" for k, v in usual.items())
        return Given((), dict(usual)), 0, (f"the inputs are {told}",)
    takes = ", ".join(p.name for p in needed(built.model))
    typed = command(built.target, wanted, inputs(built))
    raise Lacking(f"its inputs are not known ({takes}); {typed}")


def with_axis(dims: BatchDims, axis: int | None) -> BatchDims:
    """The axes of the samples, with the one of the target."""
    if isinstance(dims, int):
        return dims if axis == dims else {TARGET: axis}
    return {**dims, TARGET: axis}


def finished(
    given: Given, dims: BatchDims, assumed: tuple[str, ...], loss: Loss, target: Tensor
) -> Step:
    """A step with a loss and a target."""
    if given.kwargs:
        return Step(given.args, given.kwargs | {TARGET: target}, loss, dims, assumed)
    return Step((*given.args, target), {}, loss, dims, assumed)


def loss_function(name: str) -> Loss:
    """A loss by its name, or as `PATH:OBJECT`: a function, or a class of modules.

    Raises:
        Trouble: nothing has that name.
    """
    if name in LOSSES:
        return LOSSES[name]
    path, colon, thing = name.rpartition(":")
    if not colon:
        known = ", ".join([*LOSSES, NONE])
        raise Trouble(f"--loss {name!r} is unknown: one of {known}, or PATH:FUNCTION")
    file = Path(path)
    with beside(package_of(file.resolve())[0]) if file.exists() else contextlib.nullcontext():
        module = load_file(file.resolve()) if file.exists() else load_module(path)
        loss: Any = find(module, thing)
        make: Any = loss if inspect.isclass(loss) else lambda: loss
    return make()


def tensors(step: Step) -> Iterator[Tensor]:
    """The tensors among the arguments of a step."""
    return (x for x in pytree.tree_leaves((step.args, step.kwargs)) if isinstance(x, Tensor))
