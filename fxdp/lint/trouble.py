"""What a lint run cannot do, and why, in one line; and where the user's code stopped."""

import traceback

from fxdp.diagnostic import is_library


class Trouble(Exception):
    """The tool cannot go on with a model, or at all: a bad path, a file that does not import.

    Its text is for the user; a traceback is shown with `-v` only.
    """


def said(error: BaseException) -> str:
    """An exception in one line: its kind, and the first line of what it says."""
    if isinstance(error, Trouble):
        return str(error)
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place(error: BaseException) -> str:
    """` at FILE:LINE`, the innermost line of the user's that an exception passed; "" if none."""
    if isinstance(error, SyntaxError):
        return f" at line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not is_library(f.filename)]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def details(error: BaseException) -> str:
    """The whole traceback."""
    return "".join(traceback.format_exception(error))
