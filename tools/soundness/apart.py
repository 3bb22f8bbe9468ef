"""Work in a process of its own, because kernels that get wrong inputs may take it down."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

# The child starts with all that is imported here already.
FORK = multiprocessing.get_context("fork")


def apart(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """What the function returns for each item, in order; None where its process died."""
    done = 0
    while done < len(items):
        receive, send = FORK.Pipe(duplex=False)
        child = FORK.Process(target=work, args=(send, function, items[done:]), daemon=True)
        child.start()
        send.close()
        try:
            while done < len(items):
                yield receive.recv()
                done += 1
        except EOFError:
            yield None
            done += 1
        child.join()


def work(send: Connection, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
    for item in items:
        send.send(function(item))
