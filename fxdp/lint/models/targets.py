"""From what the user names to the models that are meant."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fxdp.diagnostics.location import is_library
from fxdp.lint.failures import details
from fxdp.lint.models import discovery
from fxdp.lint.models.building import (
    Built,
    Given,
    Mode,
    anywhere,
    assumed_of,
    call,
    inputs_of,
    make,
)
from fxdp.lint.models.exported import load, module_of
from fxdp.lint.models.hugging import is_hugging
from fxdp.lint.models.loading import beside, find, load_file, load_module, package_of
from fxdp.lint.models.suggesting import next_command
from fxdp.lint.models.walking import EXAMPLE, absence, split
from fxdp.lint.models.wanted import Name, Wanted
from fxdp.lint.result import LeftOut, Result
from fxdp.lint.trouble import Lacking, Trouble

Found = Built | Result | LeftOut  # a model, or why there is no model


def models(target: str, wanted: Wanted, stack: ExitStack) -> Iterator[Found]:
    """The models that a target names. `stack` keeps what they import for as long as needed."""
    path, _, name = split(target)
    file = Path(path)
    try:
        if why := absence(target):
            raise Trouble(why)
        if path.endswith(".pt2"):
            yield exported(file, target)
        elif path.endswith(".py"):
            stack.enter_context(beside(package_of(file.resolve())[0]))
            yield from of_module(load_file(file.resolve()), path, name, wanted)
        else:
            stack.enter_context(beside(Path.cwd()))
            yield from of_module(load_module(path), path, name, wanted)
    except Trouble as error:
        yield failure(target, path, 1, error)


def failure(target: str, path: str, line: int, error: BaseException) -> Result:
    """A model that there is not."""
    return Result(target, path, line, "failed", trouble=str(error), details=details(error))


def of_module(module: ModuleType, path: str, name: str, wanted: Wanted) -> Iterator[Found]:
    """The named model of a module, or all that it defines."""
    if name == EXAMPLE:
        yield from examples(module, path)
    elif name:
        thing = find(module, name)
        if inspect.isclass(thing) and not wanted.args and not wanted.kwargs:
            shown = [b for b in examples(module, path) if not isinstance(b, Built) or
                     type(b.model) is thing]  # fmt: skip
            if shown:
                yield from shown
                return
        yield one(module, thing, path, name, wanted)
    else:
        yield from everything(module, path, wanted)


def everything(module: ModuleType, path: str, wanted: Wanted) -> Iterator[Found]:
    """All models of a file; parts of others, and what needs arguments, only if that is all."""
    found: list[Found] = list(examples(module, path))
    known = {type(b.model) for b in found if isinstance(b, Built)}
    lacking: list[tuple[str, Any]] = []
    things = list(discovery.models(module))
    used, alike = discovery.parts(module), list[LeftOut]()
    used |= {v.name for v in wanted.kwargs.values() if isinstance(v, Name)}
    for kind, names in discovery.recipes(module).items():
        first, *others = [n for n in names if not needs(getattr(module, n), wanted)] or [""]
        if first and getattr(module, kind) not in known and first not in dict(things):
            things.append((first, getattr(module, first)))
            alike += [LeftOut(f"{path}:{n}", f"{first} makes a {kind}, too") for n in others]
    for name, thing in things:
        if (
            name in used
            and not is_model(thing)
            and not discovery.takes(thing, wanted.args, wanted.kwargs)
        ):
            continue  # what is given is for the whole that it is a part of
        if not is_model(thing) and needs(thing, wanted):
            lacking.append((name, thing))
        elif thing not in known:
            found.append(one(module, thing, path, name, wanted))
    if not found and lacking:
        whole = [(name, thing) for name, thing in lacking if name not in used] or lacking
        yield from (one(module, thing, path, name, wanted) for name, thing in whole)
        return
    if not found:
        raise Trouble("it defines no nn.Module that can be linted")
    whole = [b for b in found if isinstance(b, Built)]
    for built in found:
        if not (isinstance(built, Built) and is_part(built, whole)):
            yield built
    yield from alike
    made = {type(m) for b in whole for m in b.model.modules()}
    for name, thing in lacking:
        if thing not in made and name not in used:
            why = f"it needs arguments ({', '.join(needs(thing, wanted))})"
            typed = next_command(thing, f"{path}:{name}", wanted)
            yield LeftOut(f"{path}:{name}", f"{why}; {typed}")


def needs(thing: Any, wanted: Wanted) -> tuple[str, ...]:
    """What a constructor has no value for."""
    return discovery.missing(thing, wanted.args, wanted.kwargs, wanted.config)


def is_model(thing: Any) -> bool:
    """Is this an instance, which needs no arguments any more?"""
    return isinstance(thing, torch.nn.Module) or is_hugging(thing)


def is_part(built: Built, whole: list[Built]) -> bool:
    """Is a model made from a class alone that other models of the file are made of?"""
    if built.given is not None or not built.target.endswith(f":{type(built.model).__name__}"):
        return False
    kind = type(built.model)
    others = (b.model for b in whole if b is not built)
    return any(type(m) is kind for other in others for m in other.modules())


def one(module: ModuleType, thing: Any, path: str, name: str, wanted: Wanted) -> Found:
    """One model of a module."""
    target = f"{path}:{name}"
    file, line = own_place(thing) or (path, 1)

    def build(mode: Mode) -> Built:
        model = make(thing, wanted, mode)
        again = (lambda: build(None)) if mode else None
        at = own_place(model) or (file, line)
        given = described(module, model, wanted, mode)
        return Built(target, *at, model, mode, given, again, assumed_of(thing, wanted))

    try:
        return build(None) if isinstance(thing, torch.nn.Module) else anywhere(build)
    except Lacking as error:
        typed = next_command(thing, target, wanted)
        return failure(target, file, line, Lacking(f"{error}; {typed}"))
    except Trouble as error:
        return failure(target, file, line, error)


def own_place(thing: Any) -> tuple[str, int] | None:
    """Where a thing is defined, unless that is in torch."""
    at = discovery.defined(thing)
    return None if at is None or is_library(at[0]) else at


def described(module: ModuleType, model: Any, wanted: Wanted, mode: Mode) -> Given | None:
    """The arguments of a step that the file's `example_inputs()` gives for a model.

    Raises:
        Trouble: it raised.
    """
    function = getattr(module, discovery.INPUTS, None)
    if wanted.inputs or not inspect.isfunction(function):
        return None
    takes_model = len(discovery.missing(function, (), {})) == 1
    return inputs_of(call(lambda: function(model) if takes_model else function(), mode))


def examples(module: ModuleType, path: str) -> Iterator[Found]:
    """What the file's `fxdp_example()` returns: `model, inputs`, or `model, inputs, loss_fn`."""
    function = getattr(module, EXAMPLE, None)
    if not inspect.isfunction(function):
        return
    target = f"{path}:{EXAMPLE}"
    file, line = own_place(function) or (path, 1)

    def build(mode: Mode) -> Built:
        made = call(function, mode)
        if not isinstance(made, tuple) or len(made) not in (2, 3):
            raise Trouble(f"{EXAMPLE}() returns no (model, inputs) or (.., loss_fn)")
        if not isinstance(made[0], torch.nn.Module):
            raise Trouble(f"{EXAMPLE}() returns a {type(made[0]).__name__} for a model")
        again = (lambda: build(None)) if mode else None
        at = own_place(made[0]) or (file, line)
        return Built(target, *at, made[0], mode, inputs_of(made[1], *made[2:]), again)

    try:
        yield anywhere(build)
    except Trouble as error:
        yield failure(target, file, line, error)


def exported(file: Path, target: str) -> Built:
    """A saved program, with the inputs that it was exported with."""
    program = load(file)
    inputs = program.example_inputs
    given = Given(tuple(inputs[0]), dict(inputs[1])) if inputs is not None else None
    return Built(target, str(file), 1, module_of(program), None, given)
