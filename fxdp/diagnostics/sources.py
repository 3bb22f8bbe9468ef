"""Lines of source files: which may be read, and which may be shown.

A stack trace names files. Those of a captured model are files that ran; but a saved program brings
its own traces, as text, and code may be compiled under any name. So what is read here is a Python
file, of sensible size, and nothing else; and what is shown to others is below the folder where the
command runs.
"""

import functools
import io
import linecache
import os
import stat
import tokenize

LARGEST = 4_000_000  # bytes of a file that is read
# Stands before the name of a file that a stranger's trace names: no such file is ever read.
FOREIGN = "\N{REPLACEMENT CHARACTER}:"


def lines(file: str) -> tuple[str, ...]:
    """The lines of a Python file, with their ends; none where it may not or cannot be read.

    ======================================  ==========================================
    case                                    what happens
    ======================================  ==========================================
    a cell of a notebook                    its lines, as Python keeps them
    no `.py` file                           none
    a device, a pipe, a folder              none; it is not opened
    larger than `LARGEST`                   none
    a link                                  what it leads to, by the same rules
    text that is no Python source           none
    a file that a stranger's trace names    none (`FOREIGN`)
    ======================================  ==========================================
    """
    if file.startswith(FOREIGN):
        return ()
    try:
        real = os.path.realpath(file)
        about = os.stat(real)
    except (OSError, ValueError):
        return tuple(cell(file))
    if not (real.endswith(".py") and stat.S_ISREG(about.st_mode) and about.st_size <= LARGEST):
        return ()
    return _lines(real, about.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _lines(real: str, _changed: int) -> tuple[str, ...]:
    try:
        with open(real, "rb") as file:
            data = file.read(LARGEST + 1)
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (OSError, SyntaxError, ValueError, LookupError):
        return ()
    return tuple(io.StringIO(text, newline=None).readlines())


def cell(file: str) -> list[str]:
    """The lines of what was never a file, and was registered with Python's cache of lines."""
    known = linecache.cache.get(file)
    return known[2] if known is not None and len(known) == 4 and known[1] is None else []


def line(file: str, number: int) -> str:
    """A line of a file, from 1, with its end; "" where the file has no such line."""
    found = lines(file)
    return found[number - 1] if 0 < number <= len(found) else ""


def is_shown(file: str) -> bool:
    """May lines of a file stand in a report? Those below the current folder, links resolved; and
    those of a notebook's cells."""
    if file.startswith(FOREIGN):
        return False
    try:
        here, real = os.path.realpath(os.getcwd()), os.path.realpath(file)
        return bool(cell(file)) or os.path.commonpath([here, real]) == here
    except (OSError, ValueError):
        return False


def shown_lines(file: str) -> tuple[str, ...]:
    """The lines of a file that may stand in a report."""
    return lines(file) if is_shown(file) else ()


def shown_line(file: str, number: int) -> str:
    """A line of a file, without its end, where it may stand in a report; "" otherwise."""
    return line(file, number).rstrip("\r\n") if is_shown(file) else ""
