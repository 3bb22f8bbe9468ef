"""Work in a process of its own for each item.

Kernels that get wrong inputs may write outside of their memory. That takes a process down there
and then, or later, in the middle of something else; until then it may change what else is computed
in it. So no two items share a process.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

# The child starts with all that is imported here already.
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Died:
    """The process of an item ended before its result was there, or broke down behind it.

    Attributes:
        why: how it ended, and the last line that it wrote to stderr.
    """

    why: str


def apart(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """What the function returns for each item, in order, or how its process died."""
    for item in items:
        with tempfile.TemporaryFile() as said:
            receive, send = FORK.Pipe(duplex=False)
            own = (send, function, item, said.fileno())
            child = FORK.Process(target=work, args=own, daemon=True)
            child.start()
            send.close()
            try:
                found = receive.recv()
            except EOFError:
                found = None
            child.join()
            code = child.exitcode or 0
            yield found if code == 0 else Died(ending(code, said))


def work(send: Connection, function: Callable[[Any], Any], item: Any, said: int) -> None:
    os.dup2(said, 2)  # what the C library says of broken memory goes there, too
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - as long as the process
    send.send(function(item))


def ending(code: int, said: Any) -> str:
    """How a process ended, in words.

    Args:
        code: its exit code, minus the number of the signal that killed it.
        said: the file that was its stderr.
    """
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    said.seek(0)
    lines = [t for line in said.read().decode(errors="replace").splitlines() if (t := line.strip())]
    return f"{how}: {lines[-1]}" if lines else how
