"""What a linted file may see of this process, and what of it is put back afterwards.

Linting a file runs it. It is not the file's business how the command was called, and the report is
not for it to write to: its arguments are its own path alone, and what it prints goes to stderr.
"""

import atexit
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

OUT, ERR = 1, 2  # file descriptors


class Lent(io.TextIOBase):
    """A stream that whoever gets it may write to, and not close."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str, /) -> int:
        return self.stream.write(text)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def close(self) -> None:
        """It stays open: the report comes after."""

    def __getattr__(self, name: str) -> Any:
        """What else text streams have: `buffer`, `reconfigure`."""
        return getattr(self.stream, name)

    @property
    def encoding(self) -> Any:  # type: ignore[override]
        return self.stream.encoding


@contextlib.contextmanager
def apart(path: str, verbose: bool) -> Iterator[None]:
    """Run what is somebody else's: it sees no arguments of ours, and prints to stderr.

    ==================================  ================================================
    what it changes                     afterwards
    ==================================  ================================================
    `sys.argv`, which is its path       as before
    the current folder                  as before
    `sys.stdout`, `sys.stderr`          as before, and open, also where it closed them
    file descriptor 1                   as before; meanwhile it is that of stderr
    filters of warnings                 as before
    the wish to keep bytecode           as before; meanwhile none is written: the files may be
                                        edited and linted again within a second
    ==================================  ================================================

    Args:
        path: what is linted.
        verbose: whether warnings are shown.
    """
    argv, original, folder = sys.argv, sys.orig_argv, os.getcwd()
    bytecode = sys.dont_write_bytecode
    content = list(argv)
    torch_log = logging.getLogger("torch")
    before = torch_log.level
    with streams(), warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
            torch_log.setLevel(logging.CRITICAL)
        sys.argv, sys.orig_argv = [path], [sys.executable, path]
        sys.dont_write_bytecode = True
        try:
            yield
        finally:
            argv[:] = content
            sys.argv, sys.orig_argv = argv, original
            sys.dont_write_bytecode = bytecode
            torch_log.setLevel(before)
            os.chdir(folder)


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """stdout is stderr, down to the file descriptors; both are put back, and open."""
    out, err = sys.stdout, sys.stderr
    if out is not None:  # pyright: ignore[reportUnnecessaryComparison] - None where fd 1 is closed
        out.flush()
    kept = {number: duplicate(number) for number in (OUT, ERR)}
    if None not in kept.values():
        os.dup2(ERR, OUT)
    sys.stdout = sys.stderr = Lent(err)
    try:
        yield
    finally:
        if out is not None and not out.closed:  # pyright: ignore[reportUnnecessaryComparison]
            out.flush()  # what was written past `sys.stdout` goes where the rest went
        for number, copy in kept.items():
            if copy is not None:
                os.dup2(copy, number)
                os.close(copy)
        sys.stdout = opened(out, OUT)
        sys.stderr = opened(err, ERR)


def duplicate(number: int) -> int | None:
    """A copy of a file descriptor; None if it is closed."""
    try:
        return os.dup(number)
    except OSError:
        return None


def opened(stream: Any, number: int) -> Any:
    """A stream, or another for its file descriptor if it was closed."""
    is_closed = stream is not None and stream.closed
    return open(number, "w", closefd=False) if is_closed else stream


def hush() -> None:
    """From here on nothing gets to stdout: what a linted file left to be done at exit prints."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        os.dup2(ERR, OUT)
    sys.stdout = sys.stderr


def hush_at_exit() -> None:
    """Call `hush` before all that was registered so far."""
    atexit.unregister(hush)
    atexit.register(hush)
