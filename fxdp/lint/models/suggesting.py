"""The command to type next, where a model needs more than its file says.

Its values are guesses (`guesses`, `shapes`), and every word is quoted for a shell.
"""

import contextlib
import shlex
from dataclasses import replace
from typing import Any

from fxdp.lint.models import configs, guesses
from fxdp.lint.models.building import Built, Given, make
from fxdp.lint.models.discovery import missing
from fxdp.lint.models.shapes import suggested
from fxdp.lint.models.wanted import Wanted
from fxdp.lint.trouble import Trouble
from fxdp.torch_internals import FakeTensorMode

EXAMPLE = "define fxdp_example() in the file, which returns (model, inputs)"


def next_command(thing: Any, target: str, wanted: Wanted, given: Given | None = None) -> str:
    """A command for a class or factory that needs arguments, and maybe inputs.

    Args:
        thing: what is to be built.
        target: how it is named.
        wanted: what the user said.
        given: the inputs that the file describes; None if there are none.
    """
    settings, arguments = values(thing, wanted)
    if None in (*settings.values(), *arguments.values()):
        return EXAMPLE
    more: list[str] = []
    for option, found, before in (("--config", settings, wanted.config),
                                  ("--kwargs", arguments, wanted.kwargs)):  # fmt: skip
        if found:
            more += [option, ", ".join(f"{k}={v!r}" for k, v in (before | found).items())]
    full = replace(wanted, config=wanted.config | settings, kwargs=wanted.kwargs | arguments)
    if not wanted.inputs and given is None:
        with contextlib.suppress(Trouble):
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            with contextlib.ExitStack() as stack:
                model = make(thing, full, mode)
                stack.enter_context(mode)
                more += inputs(Built(target, "", 1, model, mode))
    return command(target, wanted, more)


def values(thing: Any, wanted: Wanted) -> tuple[dict[str, Any], dict[str, Any]]:
    """Guesses for the settings of a configuration and for the arguments that are missing."""
    lacking = missing(thing, wanted.args, wanted.kwargs, wanted.config)
    own = configs.parameters(thing)
    settings: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    kinds = configs.taken(thing, wanted.kwargs)
    for name in lacking:
        if name in own and name not in kinds:
            arguments[name] = guesses.value(thing, name, own[name])
    for taken in kinds.values():
        for name in configs.lacking(taken.kind, wanted.config):
            if name in lacking:
                p = configs.parameters(taken.kind)[name]
                settings[name] = guesses.value(taken.kind, name, p)
    return settings, arguments


def inputs(built: Built) -> list[str]:
    """The inputs to suggest for a model, as options."""
    return [word for text in suggested(built) for word in ("--input", text)]


def command(target: str, wanted: Wanted, more: list[str]) -> str:
    """The command that was typed, for one model, with more options."""
    options = [o for o in more[::2]]
    said = list(zip(wanted.said[::2], wanted.said[1::2], strict=True))
    kept = [w for o, v in said if o not in options or o == "--input" for w in (o, v) if w]
    return "type: " + " ".join(map(shlex.quote, ["fxdp-lint", target, *kept, *more]))
