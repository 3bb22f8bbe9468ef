"""How a model is to be linted: what the command line and pyproject.toml say of it."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxdp.lint.trouble import Trouble

if TYPE_CHECKING:
    from fxdp.capture.inputs import BatchDims


LOSSES = ("cross_entropy", "nll", "mse", "l1", "smooth_l1", "huber", "bce")  # by name


@dataclass(frozen=True)
class Wanted:
    """What is to be done with a model.

    Attributes:
        inputs: of a step, in the language of `fxdp.lint.models.inputs`; empty to find them out.
        target: of the loss, likewise; None to find it out.
        loss: a name, "none" where the model returns its loss, or `PATH:OBJECT`; None to find
            out.
        train: whether the model is in training mode.
        args, kwargs: for the constructor.
        config: settings of a configuration class.
        batch_dims: the axes of the samples where `N` does not say; None to go by N.
        timeout: seconds for a model; 0 for no limit.
        said: the options that the user typed of these, to be typed once more.
    """

    inputs: tuple[str, ...] = ()
    target: str | None = None
    loss: str | None = None
    train: bool = True
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=lambda: {})
    config: dict[str, Any] = field(default_factory=lambda: {})
    batch_dims: BatchDims | None = None
    timeout: float = 0.0
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Name:
    """Something of the linted file, by its name: `--kwargs "block=BasicBlock"`."""

    name: str

    def __repr__(self) -> str:
        return self.name


def literal(option: str, text: Any) -> Any:
    """A Python literal; what a TOML file gives is one already.

    Raises:
        Trouble: it is not one.
    """
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Trouble(f"{option} {text!r} is no Python literal") from None


def arguments(text: Any) -> tuple[Any, ...]:
    """Positional arguments of a constructor: `(3, 10)`, `[3, 10]`, or one value alone."""
    value = literal("--args", text)
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def keywords(text: Any) -> dict[str, Any]:
    """Keyword arguments of a constructor: `{'width': 64}`, or `width=64, depth=2`."""
    if isinstance(text, str) and not text.lstrip().startswith("{"):
        try:
            call = ast.parse(f"dict({text})", mode="eval").body
            assert isinstance(call, ast.Call)
            assert not call.args
            return {str(k.arg): valued(k.value) for k in call.keywords}
        except (ValueError, SyntaxError, AssertionError):
            raise Trouble(f"--kwargs {text!r} is not like width=64, depth=2") from None
    value = literal("--kwargs", text)
    if not isinstance(value, dict):
        raise Trouble(f"--kwargs {text!r} is not a mapping of names to values")
    return {str(k): v for k, v in value.items()}


def valued(node: ast.expr) -> Any:
    """A literal, or the name of something in the linted file."""
    return Name(node.id) if isinstance(node, ast.Name) else ast.literal_eval(node)


def configuration(text: Any) -> dict[str, Any]:
    """A model configuration: JSON, a file that holds it, or `hidden_size=64, ...`."""
    if isinstance(text, Mapping):
        return dict(text)
    if not str(text).lstrip().startswith("{"):
        if not str(text).endswith(".json"):
            return keywords(str(text))
        if not Path(text).is_file():
            raise Trouble(f"--config {text}: no such file")
        text = Path(text).read_text(encoding="utf-8")
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise Trouble(f"--config is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Trouble("--config is no JSON object")
    return value


def axes(text: Any) -> BatchDims:
    """The axes of the samples: a number for all inputs, or a mapping by argument name."""
    value = literal("--batch-dims", text)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and not isinstance(value, Mapping):
        raise Trouble(f"--batch-dims {text!r} is not a number or a mapping like {{'x': 1}}")
    return value
