"""Configurations: the objects that a constructor takes for all of its settings at once.

`GPT(config: GPTConfig)` is built from `--config "n_layer=2"`: a dataclass, a named tuple, or
another class that is called so. What the user does not set has its default.
"""

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fxdp.lint.trouble import Trouble

KIND = re.compile(r"(config|configuration|args|arguments|params|hparams|options|settings)$", re.I)
# How a parameter without an annotation is called that takes a configuration.
CALLED = re.compile(r"^((\w+_)?(config|cfg|conf|args|params|hparams|options|settings)|opts?|hps)$")
SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Taken:
    """A configuration that a constructor takes.

    Attributes:
        kind: the class of configurations.
        named: whether the annotation says so; otherwise it is the file's only such class.
    """

    kind: Any
    named: bool


def namespace(thing: Any) -> dict[str, Any]:
    """The names that a class or function may use in its file."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    return getattr(thing, "__globals__", None) or (vars(module) if module else {})


def parameters(thing: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor or factory that have a name; none where it has no
    signature."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return {}
    return {k: p for k, p in signature.parameters.items() if p.kind not in SEVERAL}


def annotation(thing: Any, p: inspect.Parameter) -> Any:
    """The class that a parameter is annotated with, without `Optional`; None if there is none."""
    hint = p.annotation
    if isinstance(hint, str):
        word = re.sub(r"^(typing\.)?Optional\[(.*)\]$", r"\2", hint.strip("'\" "))
        first, *more = (w.strip() for w in word.split("|"))
        hint = namespace(thing).get(first.rpartition(".")[2]) if set(more) <= {"None"} else None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [a for a in typing.get_args(hint) if a is not type(None)]
        hint = kinds[0] if len(kinds) == 1 else None
    return hint if inspect.isclass(hint) and hint is not p.empty else None


def is_config(kind: Any) -> bool:
    """Is this a class of configurations, by how it is made or by its name?"""
    if not inspect.isclass(kind) or issubclass(kind, (nn.Module, Tensor, type)):
        return False
    made = dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields")
    return made or hasattr(kind, "_fields") or KIND.search(kind.__name__) is not None


def taken(thing: Any, given: Mapping[str, Any]) -> dict[str, Taken]:
    """The configurations that a constructor takes and is not given, by parameter.

    Without an annotation it is the file's only class of configurations, or the one that is called
    like the model: `GPTConfig` of `GPT`.
    """
    found: dict[str, Taken] = {}
    for name, p in parameters(thing).items():
        if name in given:
            continue
        if is_config(kind := annotation(thing, p)):
            found[name] = Taken(kind, True)
        elif p.annotation is p.empty and p.default is p.empty and CALLED.match(name):
            known = {v for v in namespace(thing).values() if is_config(v)}
            own = {v for v in known if v.__name__.startswith(getattr(thing, "__name__", "?"))}
            if len(choice := own if len(own) == 1 else known) == 1:
                found[name] = Taken(choice.pop(), False)
    return found


def settings_for(kinds: Mapping[str, Taken], config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What `--config` says to each configuration: all of it to the only one, otherwise by
    parameter."""
    if len(kinds) == 1:
        return dict.fromkeys(kinds, config)
    return {name: value for name, value in config.items() if isinstance(value, dict)}


def lacking(kind: Any, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that a class of configurations cannot do without, and has no value for."""
    fields = parameters(kind)
    return tuple(k for k, p in fields.items() if p.default is p.empty and k not in settings)


def filled(kind: Any, settings: Mapping[str, Any]) -> Any:
    """A configuration with some settings, and its defaults for the others.

    Raises:
        Trouble: it has no setting of such a name.
    """
    fields = parameters(kind)
    several = len(fields) < len(inspect.signature(kind).parameters) if fields else True
    unknown = [k for k in settings if k not in fields]
    if unknown and not several:
        raise Trouble(
            f"--config: {kind.__name__} has no {unknown[0]!r}: one of {', '.join(fields)}"
        )
    values = dict(settings)
    for name, value in settings.items():
        inner = annotation(kind, fields[name]) if name in fields else None
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            values[name] = filled(inner, value)
    return kind(**values)
