"""Locations in the user's program: a line, and the expression in it, from torch's stack traces."""

import ast
import functools
import os
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

from fxdp.diagnostics import sources
from fxdp.diagnostics.printed import plain_source


@dataclass(frozen=True)
class Location:
    """A place in the user's code.

    Attributes:
        file, line, function: of the expression that is at fault.
        column, end_column: of the expression in the line, from 1, the end excluded; None where
            torch noted only the line.
    """

    file: str
    line: int
    function: str
    column: int | None = None
    end_column: int | None = None

    @property
    def source(self) -> str:
        """The line, without its indentation; "" where it is in no Python file, or in one that a
        saved program names. For the eyes of whoever ran the model; reports show fewer."""
        return plain_source(sources.line(self.file, self.line).rstrip("\r\n")).strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f":{self.column}" if self.column else "")


class Noted(str):
    """A line as torch notes it with a question about sizes, as text; with the place that it is."""

    location: Location


FRAME = re.compile(
    r'File "(?P<file>.+?)", line (?P<line>\d+), in (?P<function>\S+)'
    r"(?:\n    (?P<text>\S.*)\n(?P<marks> +[~^]+)$)?",
    re.MULTILINE,
)
OURS = Path(__file__).parents[1]
LIBRARIES = tuple(str(folder) + os.sep for folder in (Path(torch.__file__).parent, OURS))
PASSES = str(OURS.parent / "passes") + os.sep
STANDARD = sysconfig.get_path("stdlib") + os.sep
INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


def is_library(file: str) -> bool:
    """Is this a file of torch, fxdp or Python? Its lines are not the user's to mend."""
    file = file.removeprefix(sources.FOREIGN)
    standard = file.startswith(STANDARD) and not any(part in file for part in INSTALLED)
    return standard or file.startswith((*LIBRARIES, PASSES, "<"))


def locate(trace: str | None) -> Location | None:
    """The innermost line of the user's in a stack trace as text."""
    own = [m for m in FRAME.finditer(trace or "") if not is_library(m["file"])]
    return located(own[-1]) if own else None


def located(frame: re.Match[str]) -> Location:
    """The place that a frame of a stack trace names; carets under its line give the columns."""
    file, line, function = frame["file"], int(frame["line"]), frame["function"]
    source = sources.line(file, line)
    if frame["marks"] is None:
        column = len(source) - len(source.lstrip()) + 1 if source.strip() else None
        return Location(file, line, function, column, ends(file).get((line, column or 0)))
    # The trace shows the line without its indentation, behind four spaces.
    start = len(source) - len(source.lstrip()) + len(frame["marks"]) - len(frame["marks"].lstrip())
    column = start - 4 + 1
    return Location(file, line, function, column, ends(file).get((line, column)))


@functools.cache
def ends(file: str) -> dict[tuple[int, int], int]:
    """Where the expressions of a file end, by line and column of their start; those that go on
    to other lines, at the end of their first.

    torch keeps the start of an expression but not its end. Of several that start at one place, a
    call is the one that ran an op, and the longest of them is the last.
    """
    try:
        tree = ast.parse("".join(sources.lines(file)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: dict[tuple[int, int], tuple[bool, int]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            line = sources.line(file, node.lineno).rstrip().encode()
            end = node.end_col_offset if node.end_lineno == node.lineno else None
            place = node.lineno, len(line[: node.col_offset].decode()) + 1
            rank = isinstance(node, ast.Call), len(line[:end].decode()) + 1
            found[place] = max(found.get(place, rank), rank)
    return {place: end for place, (_, end) in found.items()}
