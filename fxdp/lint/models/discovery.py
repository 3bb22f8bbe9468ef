"""What there is to lint in a file: classes, factories and instances, and what they need."""

import ast
import inspect
import re
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import nn

from fxdp.diagnostics import sources
from fxdp.lint.models import configs
from fxdp.lint.models.walking import EXAMPLE, last_name

INPUTS = "example_inputs"
# What a function without a return type must be called to be taken for a factory: it is called.
FACTORY = re.compile(r"^((make|build|create|get|new)_(\w+_)?(model|net|network)\w*|model|net)$")


def models(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The instances, factories and classes of a module, by name."""
    things = [(k, v) for k, v in vars(module).items() if not k.startswith("_")]
    yield from ((k, v) for k, v in things if isinstance(v, nn.Module))
    yield from ((k, v) for k, v in things if is_factory(v, module))
    yield from ((k, v) for k, v in things if is_model_class(v, module))


def is_model_class(thing: Any, module: ModuleType) -> bool:
    """Is this a class of models that this module defines, and that has a forward?"""
    return (
        inspect.isclass(thing)
        and issubclass(thing, nn.Module)
        and thing.__module__ == module.__name__
        and not inspect.isabstract(thing)
        and thing.forward is not nn.Module.forward
    )


def is_factory(thing: Any, module: ModuleType) -> bool:
    """Is this a function that makes a model, by its return type or else by its name?"""
    if not inspect.isfunction(thing) or thing.__module__ != module.__name__:
        return False
    if thing.__name__ in (EXAMPLE, INPUTS):
        return False
    try:
        made = typing.get_type_hints(thing).get("return")
    except Exception:
        made = None
    if made is None:
        return FACTORY.match(thing.__name__) is not None
    return inspect.isclass(made) and issubclass(made, nn.Module)


def recipes(module: ModuleType) -> dict[str, list[str]]:
    """The functions that make a model by what they are made of, by the class that they make.

    `def resnet20(): return ResNet(BasicBlock, [3, 3, 3])`: assignments, branches, and a model of
    the file returned. No others: a function is called to be linted.
    """
    tree = parsed(module)
    functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
    made: dict[str, str] = {}
    for _ in range(3):  # a recipe may call another
        for name, function in functions.items():
            for called in returned(function):
                kind = made.get(called, called)
                if is_model_class(getattr(module, kind, None), module):
                    made[name] = kind
    found: dict[str, list[str]] = {}
    for name in functions:
        if name in made and not name.startswith("_") and name not in (EXAMPLE, INPUTS):
            found.setdefault(made[name], []).append(name)
    return found


def parsed(module: ModuleType) -> ast.Module:
    """The syntax of a module's file; nothing where it cannot be read."""
    try:
        return ast.parse("".join(sources.lines(getattr(module, "__file__", None) or "")))
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def returned(function: ast.FunctionDef) -> list[str]:
    """The names that a function calls to make what it returns; none if it does anything else."""
    body = [s for s in function.body if not is_text(s)]
    if not all(isinstance(s, ast.Assign | ast.AnnAssign | ast.If | ast.Return) for s in body):
        return []
    made = {
        t.id: last_name(s.value.func)
        for s in body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Call)
        for t in s.targets if isinstance(t, ast.Name)
    }  # fmt: skip
    match body[-1:]:
        case [ast.Return(value=ast.Call(func=func))]:
            return [last_name(func)]
        case [ast.Return(value=ast.Name(id=name))] if name in made:
            return [made[name]]
        case _:
            return []


def is_text(statement: ast.stmt) -> bool:
    """Is this a docstring?"""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def parts(module: ModuleType) -> set[str]:
    """The names that classes and functions of a file use, apart from a class its own."""
    found = set[str]()
    for node in parsed(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            called = {n.func.id for n in ast.walk(node)
                      if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
            found |= (used if isinstance(node, ast.ClassDef) else used - called) - {node.name}
    return found


def takes(thing: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Does a constructor take such arguments, whatever else it needs?"""
    try:
        inspect.signature(thing).bind_partial(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def missing(
    thing: Any, args: tuple[Any, ...], kwargs: dict[str, Any], config: dict[str, Any] | None = None
) -> tuple[str, ...]:
    """The parameters of a constructor that have no value yet.

    A configuration that is complete with its defaults and `config` has one; of another, the
    settings are named that it lacks.
    """
    try:
        given = inspect.signature(thing).bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return ()  # the call itself will say it better
    kinds = configs.taken(thing, given)
    said = configs.settings_for(kinds, config or {})
    found: list[str] = []
    for name, p in configs.parameters(thing).items():
        if p.default is not p.empty or name in given:
            continue
        found += configs.lacking(kinds[name].kind, said.get(name, {})) if name in kinds else [name]
    return tuple(found)


def defined(thing: Any) -> tuple[str, int] | None:
    """The file and line where a class or function, or the class of an instance, is defined."""
    thing = thing if inspect.isclass(thing) or inspect.isfunction(thing) else type(thing)
    try:
        file, (_, line) = inspect.getsourcefile(thing), inspect.getsourcelines(thing)
    except (OSError, TypeError):
        return None
    return (file, line) if file else None
