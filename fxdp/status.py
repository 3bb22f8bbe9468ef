"""A transient status line during compilation, on standard error.

Nothing is written where standard error is not a terminal, nor outside `line()`.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from contextvars import ContextVar

ERASE = "\r\033[K"
_stages: ContextVar[list[str] | None] = ContextVar("fxdp_stages", default=None)


def say(stage: str) -> None:
    """Put a stage on the line."""
    said = _stages.get()
    if said is not None and sys.stderr.isatty():
        said.append(stage)
        room = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"{ERASE}{f'fxdp: {stage} ...'[:room]}")
        sys.stderr.flush()


@contextlib.contextmanager
def line() -> Iterator[None]:
    """What is said inside stands on one line, until this ends; the outermost one counts."""
    if _stages.get() is not None:
        yield
        return
    said: list[str] = []
    token = _stages.set(said)
    try:
        yield
    finally:
        _stages.reset(token)
        if said:
            sys.stderr.write(ERASE)
            sys.stderr.flush()
