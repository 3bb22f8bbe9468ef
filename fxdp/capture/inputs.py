"""The arguments of a step: flattened, checked, and split into samples and what they share."""

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxdp.capture.ragged import padded_way, refuse_ragged
from fxdp.capture.segments import Ragged, Role, looked_at, named_by, picked, with_spare
from fxdp.capture.totals import check_total
from fxdp.torch_internals import (
    pytree,
)

BatchDims = Mapping[str, int | Ragged | None] | int


TARGET = "target"


SMALLEST = 2  # torch.compile gives sizes 0 and 1 graphs of their own


@dataclass(frozen=True)
class Inputs:
    """The arguments of a step, flattened.

    Attributes:
        leaves: tensors, and constants that no sample depends on.
        dims: for each leaf the axis of its samples; None for constants and shared tensors; what it
            has to do with rows of samples, where it is ragged.
        names: for each leaf, the argument it came with.
        spec: how to put them together again.
        size: the number of samples.
        owners: of each ragged axis, int64 [R]: the sample of each row.
    """

    leaves: tuple[Any, ...]
    dims: tuple[int | Role | None, ...]
    names: tuple[str, ...]
    spec: Any
    size: int
    owners: tuple[Tensor, ...] = ()

    @property
    def device(self) -> torch.device:
        return next(x.device for x, d in zip(self.leaves, self.dims, strict=True) if d is not None)

    @property
    def least(self) -> int:
        """How many samples there are to be: as many as there are, if torch.compile has one graph
        for their number and for the numbers of their rows."""
        short = any(len(owner) < SMALLEST for owner in self.owners)
        return max(self.size + short, SMALLEST)

    def piece(self, size: int) -> int:
        """How many samples a piece of `size` samples is to have with its padding."""
        return max(size + bool(self.owners), SMALLEST)

    def part(self, start: int, stop: int) -> "Inputs":
        """The same arguments with the samples from `start` to `stop` alone."""
        if self.owners:
            return self.picked(range(start, stop))
        leaves = [
            x.narrow(d, start, stop - start) if isinstance(d, int) else x
            for x, d in zip(self.leaves, self.dims, strict=True)
        ]
        return replace(self, leaves=tuple(leaves), size=stop - start)

    def picked(self, samples: Sequence[int]) -> "Inputs":
        """The same arguments with some samples alone, by their numbers; one may come twice."""
        leaves, owners = picked(self.leaves, self.dims, self.owners, samples)
        index = torch.tensor(list(samples), dtype=torch.int64, device=self.device)
        leaves = [
            x.index_select(d, index.to(x.device)) if isinstance(d, int) else x
            for x, d in zip(leaves, self.dims, strict=True)
        ]
        return replace(self, leaves=tuple(leaves), size=len(samples), owners=owners)

    def resized(self, rows: int) -> "Inputs":
        """The same arguments with `rows` samples, the first one repeated or zeros added; of ragged
        ones, the last sample has the rows that are added."""
        if rows == self.size:
            return self
        leaves, owners = with_spare(self.leaves, self.dims, self.owners, self.size, rows)
        leaves = [
            padded(x, d, rows) if isinstance(d, int) else x
            for x, d in zip(leaves, self.dims, strict=True)
        ]
        return replace(self, leaves=tuple(leaves), size=rows, owners=owners)


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
        TypeError: an argument that should hold samples is not a tensor, or an axis not an integer.
        ValueError: the arguments disagree on the number of samples, or none holds samples, or one
            is a total of the batch.
    """
    if has_target and TARGET not in kwargs:
        check_target(model, args, kwargs)
    keys = argument_names(model, args, kwargs, has_target)
    if isinstance(batch_dims, Mapping) and (unknown := set(batch_dims) - set(keys)):
        raise ValueError(f"batch_dims names {sorted(unknown)}, but the arguments are {keys}")
    axes: list[Any] = list(batch_dims.values()) if isinstance(batch_dims, Mapping) else [batch_dims]
    for axis in axes:
        known = axis is None or isinstance(axis, Ragged) and isinstance(batch_dims, Mapping)
        if not known and (isinstance(axis, bool) or not isinstance(axis, int)):
            raise TypeError(f"batch_dims must name axes by integers, not {axis!r}")
    given = batch_dims if isinstance(batch_dims, Mapping) else {}
    declared = {k: d for k, d in given.items() if isinstance(d, Ragged)}
    leaves: list[Any] = []
    dims: list[int | Role | None] = []
    names: list[str] = []
    for key, value in zip(keys, (*args, *kwargs.values()), strict=True):
        wanted = batch_dims.get(key, 0) if isinstance(batch_dims, Mapping) else batch_dims
        wanted = wanted.dim if isinstance(wanted, Ragged) else wanted
        check_total(key, value, wanted)
        refuse_ragged(key, value)
        flat = [value] if type(value) is Tensor else pytree.tree_leaves(value)
        for leaf in flat:
            leaves.append(leaf)
            names.append(key)
            dims.append(sample_axis(key, leaf, wanted, alone=len(flat) == 1 and leaf is value))
    spec = structure(args, kwargs)
    indexed = (k for k, how in named_by(declared).items() if how == "index") if declared else ()
    of_rows = {*declared, *indexed}
    sizes = {
        n: x.shape[d]
        for x, d, n in zip(leaves, dims, names, strict=True)
        if isinstance(d, int) and n not in of_rows
    }
    if not sizes:
        raise ValueError("no argument holds samples: pass at least one tensor with a batch axis")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{n} has {s}" for n, s in sizes.items())
        advice = "give all of them the same, or say in batch_dims which axis is the batch's"
        if (way := padded_way(sizes)) is not None:
            advice += f". If samples have different numbers of rows, {way}"
        raise ValueError(f"the arguments disagree on the number of samples: {listed}; {advice}")
    size = next(iter(sizes.values()))
    if not declared:
        return Inputs(tuple(leaves), tuple(dims), tuple(names), spec, size)
    alone = {n: x for n, x in zip(names, leaves, strict=True) if names.count(n) == 1}
    tensors = {n: x for n, x in alone.items() if isinstance(x, Tensor)}
    if missing := set(declared) - set(tensors):
        raise TypeError(f"batch_dims: {sorted(missing)} are ragged, and must be one tensor each")
    rows = looked_at(declared, tensors, size)
    dims = [rows.roles.get(n, d) for n, d in zip(names, dims, strict=True)]
    return Inputs(tuple(leaves), tuple(dims), tuple(names), spec, size, rows.owners)


def structure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """How to put arguments together again."""
    if all(type(x) is Tensor for x in (*args, *kwargs.values())):
        return structure_of_tensors(len(args), tuple(kwargs))
    return pytree.tree_structure((args, kwargs))


@functools.lru_cache
def structure_of_tensors(count: int, keywords: tuple[str, ...]) -> Any:
    """That of so many tensors, and of one for each keyword."""
    return pytree.tree_structure(((0,) * count, dict.fromkeys(keywords, 0)))


def check_target(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """With a loss in the step, the last argument is its target.

    Raises:
        TypeError: it is missing: all arguments are the model's own.
    """
    if not args and not kwargs:
        return  # an error of its own
    forward = Forward.of(model)
    if args and (forward.takes(args[:-1], kwargs) or not forward.takes(args, kwargs)):
        return
    raise TypeError(
        "the target is missing: with loss_fn a step is private(x, y), and returns the loss. For a "
        "loop that makes the loss itself of private(x), leave loss_fn out and pass "
        "loss_reduction='mean' (or 'sum') to fxdp.compile"
    )


class Forward:
    """How a model is called: its signature, which takes longer to read than a small model to run.

    Attributes:
        names: of what may be passed by position.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = inspect.signature(function)
        self.names = [
            p.name
            for p in self._signature.parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        self._known: dict[tuple[int, tuple[str, ...]], bool] = {}

    @staticmethod
    def of(model: nn.Module) -> "Forward":
        """That of a model, read again where another forward was put into it."""
        function = model.forward
        own = getattr(function, "__func__", function)
        known = FORWARDS.get(model)
        if known is not None and known[0]() is own:
            return known[1]
        found = Forward(function)
        with suppress(TypeError):  # of some kinds of functions there are no weak references
            FORWARDS[model] = (weakref.ref(own), found)
        return found

    def takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Can it be called so? That depends on how many there are, and on names."""
        form = (len(args), tuple(kwargs))
        if form not in self._known:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError:
                self._known[form] = False
            else:
                self._known[form] = True
        return self._known[form]


FORWARDS: MutableMapping[nn.Module, tuple[weakref.ref[Any], Forward]] = weakref.WeakKeyDictionary()


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
    named = Forward.of(model).names
    keys = [named[i] if i < len(named) else f"args[{i}]" for i in range(len(own))]
    return [*keys, *([TARGET] if len(own) < len(args) else []), *kwargs]
