"""What there is to lint in a file: classes, factories and instances, and their examples."""

import ast
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fxdp.diagnostics.sources import LARGEST

EXAMPLE, INPUTS = "fxdp_example", "example_inputs"
SKIPPED = {"site-packages", "node_modules", "__pycache__", "build", "dist"}
# What a function without a return type must be called to be taken for a factory: it is called.
FACTORY = re.compile(r"^((make|build|create|get|new)_(\w+_)?(model|net|network)\w*|model|net)$")
BASE = re.compile(r"^(\w*Module|\w*PreTrainedModel|LightningModule)$")


def files(folder: Path) -> list[Path]:
    """The Python files of a folder that define models, without running any; no pipes or devices,
    nothing very large, and no links that lead out of the folder."""
    found = (f for f in sorted(folder.rglob("*.py")) if wanted(f.relative_to(folder)))
    return [f for f in found if is_inside(f, folder) and defines_models(f)]


def is_inside(file: Path, folder: Path) -> bool:
    """Is this a file of sensible size, that is in the folder and not only linked from there?"""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:
            return False
        return folder.resolve() in file.resolve().parents
    except OSError:
        return False


def wanted(file: Path) -> bool:
    """Is this a file of the project's own?"""
    return not any(p in SKIPPED or p.startswith(".") for p in file.parts)


def defines_models(file: Path) -> bool:
    """Does a file define a subclass of nn.Module, or an example? A broken one might."""
    text = file.read_bytes()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return b"nn.Module" in text
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == EXAMPLE:
            return True
        if isinstance(node, ast.ClassDef) and any(
            BASE.match(n) for n in map(last_name, node.bases)
        ):
            return True
    return False


def last_name(base: ast.expr) -> str:
    """`Module`, of `torch.nn.Module`."""
    match base:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return last_name(value)
        case _:
            return ""


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


def missing(thing: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
    """The parameters of a constructor that have no value yet."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return ()
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        return ()  # the call itself will say it better
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(
        name
        for name, p in signature.parameters.items()
        if p.default is p.empty and p.kind not in several and name not in given
    )


def defined(thing: Any) -> tuple[str, int] | None:
    """The file and line where a class or function, or the class of an instance, is defined."""
    thing = thing if inspect.isclass(thing) or inspect.isfunction(thing) else type(thing)
    try:
        file, (_, line) = inspect.getsourcefile(thing), inspect.getsourcelines(thing)
    except (OSError, TypeError):
        return None
    return (file, line) if file else None
