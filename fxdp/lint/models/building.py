"""Building models without data.

A model is built of fake tensors, which have a shape, a dtype and a device, and no numbers: seven
billion parameters cost nothing. A constructor that reads its own numbers cannot be; it is run
once more with data. Tensors of the meta device would be as light, but autograd does not follow
all ops there, and a proof about gradients that are not there says nothing.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxdp.lint.failures import place, said
from fxdp.lint.models import configs
from fxdp.lint.models.discovery import missing
from fxdp.lint.models.hugging import construct, is_hugging
from fxdp.lint.models.losses import Loss
from fxdp.lint.models.wanted import Name, Wanted
from fxdp.lint.trouble import Lacking, Trouble
from fxdp.torch_internals import FakeTensor, FakeTensorMode, pytree

Mode = FakeTensorMode | None  # None: with data


@dataclass(frozen=True)
class Given:
    """The arguments of a step that come with a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss: Loss | None = None


@dataclass(frozen=True)
class Built:
    """A model to be linted.

    Attributes:
        target: `PATH:OBJECT`.
        path, line: where it is defined.
        model: of fake tensors where it could be built so.
        mode: of those tensors; None where the model has data.
        given: its arguments, where the file or the program has them.
        with_data: builds it once more, with data; None where it has data already.
        assumed: what nobody said of its arguments, in sentences without a full stop.
    """

    target: str
    path: str
    line: int
    model: nn.Module
    mode: Mode = None
    given: Given | None = None
    with_data: "Callable[[], Built] | None" = None
    assumed: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")


def make(thing: Any, wanted: Wanted, mode: Mode) -> nn.Module:
    """The model that a class or a factory makes, or an instance as it is.

    Raises:
        Trouble: it cannot be built, or is not a model.
        Lacking: it needs arguments.
    """
    if isinstance(thing, nn.Module):
        return thing
    if not callable(thing):
        raise Trouble(f"it is a {type(thing).__name__}, and no nn.Module, class or factory")
    if inspect.isclass(thing) and not issubclass(thing, nn.Module) and not is_hugging(thing):
        raise Trouble(f"the class {thing.__name__} is not an nn.Module")
    if is_hugging(thing) and not wanted.args and not wanted.kwargs:
        model: Any = call(lambda: construct(thing, wanted.config), mode)
    else:
        if names := missing(thing, wanted.args, wanted.kwargs, wanted.config):
            raise Lacking(f"it needs arguments ({', '.join(names)})")
        kwargs = keywords(thing, wanted)
        model = call(lambda: thing(*wanted.args, **kwargs()), mode)
    if not isinstance(model, nn.Module):
        raise Trouble(f"it returned a {type(model).__name__}, which is not an nn.Module")
    return model


def keywords(thing: Any, wanted: Wanted) -> Callable[[], dict[str, Any]]:
    """What makes the keyword arguments of a constructor, configurations among them.

    Raises:
        Trouble: a name that is not in the file.
    """
    names = configs.namespace(thing)
    given = {k: named(v, names) for k, v in wanted.kwargs.items()}
    try:
        bound: Any = inspect.signature(thing).bind_partial(*wanted.args, **given).arguments
    except (TypeError, ValueError):
        bound = given
    kinds = configs.taken(thing, bound)
    if not kinds:
        return lambda: given | wanted.config
    said = configs.settings_for(kinds, wanted.config)
    needed = {k for k, p in configs.parameters(thing).items() if p.default is p.empty}
    settings = {k: said.get(k, {}) for k in kinds if k in needed or said.get(k)}
    return lambda: given | {k: configs.filled(kinds[k].kind, v) for k, v in settings.items()}


def named(value: Any, names: Mapping[str, Any]) -> Any:
    """A value, or what it names.

    Raises:
        Trouble: nothing is called so.
    """
    if not isinstance(value, Name):
        return value
    if value.name not in names:
        raise Trouble(f"--kwargs: there is no {value.name!r} in the file")
    return names[value.name]


def assumed_of(thing: Any, wanted: Wanted) -> tuple[str, ...]:
    """The configurations that nobody named, in sentences without a full stop."""
    if isinstance(thing, nn.Module) or is_hugging(thing) or wanted.args:
        return ()
    kinds = configs.taken(thing, wanted.kwargs)
    return tuple(
        f"its {name} is a {kind.kind.__name__}, as no annotation says otherwise"
        for name, kind in kinds.items()
        if not kind.named
    )


def call(function: Callable[[], Any], mode: Mode) -> Any:
    """Run the user's code, with fake tensors for those that it creates.

    Raises:
        Trouble: it raised.
    """
    try:
        with mode or contextlib.nullcontext():
            return function()
    except Trouble:
        raise
    except SystemExit as error:
        raise Trouble(f"it exits when it is built (code {error.code})") from error
    except Exception as error:
        raise Trouble(f"it cannot be built: {said(error)}{place(error)}") from error


def anywhere(function: Callable[[Mode], Built]) -> Built:
    """What `function` makes, without data or else with data.

    Raises:
        Trouble: it makes nothing either way; what it says is of the way with data.
    """
    try:
        return function(FakeTensorMode(allow_non_fake_inputs=True))
    except Trouble:
        return function(None)


def inputs_of(value: Any, loss: Loss | None = None) -> Given:
    """The arguments of a step as a file may give them: one, a tuple, or a dict by name."""
    if isinstance(value, dict):
        return Given((), dict(value), loss)
    if isinstance(value, list | tuple):
        args, kwargs = tuple(value), {}
        if len(args) == 2 and isinstance(args[0], tuple) and isinstance(args[1], dict):
            args, kwargs = args
        return Given(args, dict(kwargs), loss)
    return Given((value,), {}, loss)


def moved(given: Given, built: Built) -> Given:
    """The same arguments as tensors of a model's own kind, without data or with."""

    def move(x: Tensor) -> Tensor:
        if isinstance(x, FakeTensor) and x.fake_mode is built.mode:
            return x
        return zeros(x, built) if isinstance(x, FakeTensor) or built.mode else x.detach()

    args, kwargs = pytree.tree_map_only(Tensor, move, (given.args, given.kwargs))
    return Given(args, kwargs, given.loss)


def zeros(x: Tensor, built: Built) -> Tensor:
    """A tensor like one that does not go together with the model's."""
    with built.mode or contextlib.nullcontext():
        return torch.zeros(x.shape, dtype=x.dtype, device=x.device)
