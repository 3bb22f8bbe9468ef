"""An exception of the user's code in one line, where it was raised, and its traceback."""

import re
import traceback
from collections.abc import Iterator
from typing import Any

from fxdp.diagnostics import sources
from fxdp.diagnostics.location import is_library
from fxdp.lint.trouble import Trouble
from fxdp.torch_internals import TorchRuntimeError

# How torch's compiler quotes what an op said of tensors that it cannot take.
GOT = re.compile(r"got (\w+)\(['\"](.*?)['\"]\)$", re.MULTILINE | re.DOTALL)
SYMBOL = re.compile(r"\bs\d+\b")  # the batch size, while a model is captured


def said(error: BaseException) -> str:
    """An exception in one line: its kind, and the first line of what it says."""
    if isinstance(error, Trouble):
        return str(error)
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, TorchRuntimeError) and (quoted := GOT.search(text)):
        return f"{quoted[1]}: {SYMBOL.sub('N', first_line(quoted[2])).rstrip('.')}"
    return f"{type(error).__name__}: {first_line(text)}".removesuffix(": ")


def first_line(text: str) -> str:
    """What a text says, on one line."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def place(error: BaseException) -> str:
    """` at FILE:LINE`, the innermost line of the user's that an exception passed; "" if none."""
    if isinstance(error, SyntaxError):
        return f" at {error.filename}:{error.lineno}"
    captured: Any = getattr(error, "real_stack", None)  # of the model, where torch captured it
    frames = captured or traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not is_library(f.filename)]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def details(error: BaseException) -> str:
    """The whole traceback, with the source lines that may be shown."""
    whole = traceback.TracebackException.from_exception(error, lookup_lines=False)
    for part in linked(whole):
        part.stack = traceback.StackSummary.from_list([shown(f) for f in part.stack])
    return "".join(whole.format())


def linked(part: traceback.TracebackException | None) -> Iterator[traceback.TracebackException]:
    """An exception and those that it came from, each once."""
    stack, seen = [part], set[int]()
    while stack:
        part = stack.pop()
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            stack += [part.__cause__, part.__context__, *(part.exceptions or ())]
            yield part


def shown(frame: traceback.FrameSummary) -> traceback.FrameSummary:
    """A frame with its line of source, or with none."""
    line = sources.shown_line(frame.filename, frame.lineno or 0)
    return traceback.FrameSummary(
        frame.filename, frame.lineno, frame.name, lookup_line=False, line=line
    )
