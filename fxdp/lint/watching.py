"""`--watch`: lint again whenever a file changes that a target may depend on.

Each run is a fork of a process that has imported torch and fxdp, and no linted file: it starts at
once, and nothing is left of the run before. Where there is no fork, runs share one process.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fxdp.lint.models.walking import SKIPPED, split
from fxdp.lint.witness import Stamp, stamp

SECONDS = 0.5  # between two looks
WATCHED = (".py", ".pt2", "pyproject.toml")


def watch(
    once: Callable[[], int], targets: Sequence[str],
    pause: Callable[[], None] = lambda: time.sleep(SECONDS),
) -> None:  # fmt: skip
    """Lint, and again after every change, until it is interrupted.

    Args:
        once: lints and reports.
        targets: as the user names them.
        pause: waits before the next look.
    """
    seen: dict[str, Stamp] | None = None
    while True:
        now = {file: stamp(file) for file in watched(targets)}
        if now != seen:
            if sys.stdout.isatty():
                print("\x1b[2J\x1b[H", end="")
            what = "file changed" if seen is not None else "watching"
            print(f"fxdp-lint: {time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
            in_a_fork(once)
            seen = now  # as it was before the run: what changed meanwhile is seen at the next look
        pause()


def in_a_fork(once: Callable[[], int]) -> None:
    """Run in a copy of this process, and wait for it."""
    if not hasattr(os, "fork"):
        once()
        return
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    status = 2
    try:
        status = once()
        sys.stdout.flush()
    finally:
        os._exit(status)


def watched(targets: Sequence[str]) -> Iterator[str]:
    """The files that targets may depend on: those of their folders, and of the folders below."""
    for folder in dict.fromkeys(folder_of(target) for target in targets):
        for path, folders, files in os.walk(folder):
            folders[:] = [f for f in folders if f not in SKIPPED and not f.startswith(".")]
            yield from (os.path.join(path, f) for f in files if f.endswith(WATCHED))


def folder_of(target: str) -> str:
    """The folder that a target is in, or is; the current one for a module."""
    path = Path(split(target)[0])
    return str(path if path.is_dir() else path.parent if path.exists() else Path.cwd())
