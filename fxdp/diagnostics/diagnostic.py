"""Refusals, and everything they report to the user.

A fault is found in a graph, but has to be fixed in the user's model. So a `Diagnostic`
names the line of the model that the faulty op came from, what was met there, why it breaks the
promise that samples stay apart, what would make it right, and how the fault travels to a
gradient.
"""

import ast
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from fxdp.diagnostics import sources
from fxdp.diagnostics.codes import Code
from fxdp.diagnostics.location import Location
from fxdp.diagnostics.printed import plain
from fxdp.torch_internals import ShortenTraceback


@dataclass(frozen=True)
class Diagnostic:
    """One fault.

    Attributes:
        code: what kind of fault it is.
        location: the user's line, or None where the graph does not know it.
        op: the op, as the user's program or autograd spelled it.
        why: what was met.
        remedy: what would make it right.
        path: the ops from the fault to the first gradient or output that it spoils.
        modules: the submodules that the op ran in, "layer3.1.bn"; "" for the model itself.
        shapes: of the op's operands, as "[N, 4]".
    """

    code: Code
    location: Location | None
    op: str
    why: str
    remedy: str
    path: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.location}: " if self.location else ""
        inner = [m for m in self.modules if m]
        more = f" and {len(inner) - 1} more" if len(inner) > 1 else ""
        module = f" (in {inner[0]}{more})" if inner else ""
        lines = [f"{where}{self.code.code} {self.code.name}: {self.op}: {self.why}{module}"]
        if self.location and self.location.source:
            lines.append(f"    {self.location.source}")
        if self.remedy:
            lines.append(f"  help: {self.remedy}")
        if self.path:
            lines.append(f"  path: {' -> '.join(self.path)}")
        return "\n".join(map(plain, lines))


class ProofError(ShortenTraceback):
    """The model could not be proven; nothing was computed.

    It derives from a class of torch's compiler so that it passes through `torch.compile`
    unwrapped.

    Attributes:
        diagnostics: the faults, in the order of the user's lines.
    """

    def __init__(self, *diagnostics: Diagnostic) -> None:
        text = "\n".join(str(d) for d in diagnostics)
        count = f"{len(diagnostics)} faults" if len(diagnostics) > 1 else "1 fault"
        uncaptured = {d.code.name for d in diagnostics} == {"graph-break"}
        what = "the step cannot be captured" if uncaptured else "the model cannot be made private"
        super().__init__(f"{what}, {count} found\n{text}", first_useful_frame=None)
        self.diagnostics = diagnostics


class BatchMixingError(ProofError):
    """Some value of one sample depends on another sample, or on how many there are."""


class CaptureError(ProofError):
    """torch.compile could not capture the model as one graph."""


class StepFails(CaptureError):
    """An op of the step raises an error on these arguments, with fxdp or without."""


ALLOW = re.compile(r"#\s*fxdp:\s*allow\[(?P<codes>[^\]]*)\][\s:,-]*(?P<reason>.*)$")


def speaks_of(line: str, code: Code) -> re.Match[str] | None:
    """The comment on a line that allows a kind of fault."""
    comment = ALLOW.search(line)
    named = comment is not None and code.code in re.split(r"[\s,]+", comment["codes"])
    return comment if named else None


def allowance(d: Diagnostic) -> str | None:
    """The reason for which the user's line allows a fault, "" if it gives none; None if it does
    not speak of that fault."""
    if d.location is None:
        return None
    comment = speaks_of(sources.line(d.location.file, d.location.line), d.code)
    return comment["reason"].strip() if comment else None


def comment_elsewhere(d: Diagnostic, used: Collection[tuple[str, int]]) -> int | None:
    """The nearest line of the same class or function with a comment that allows such a fault.

    Args:
        used: files and lines of those that allow another.
    """
    if d.location is None or not d.code.allowable:
        return None
    file, own = d.location.file, d.location.line
    text = sources.lines(file)
    try:
        body = ast.parse("".join(text)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    parts = [(s.lineno, s.end_lineno or s.lineno) for s in body]
    first, last = next(((i, j) for i, j in parts if i <= own <= j), (own, own))
    found = [k for k in range(first, last + 1) if speaks_of(text[k - 1], d.code)]
    found = [k for k in found if k != own and (file, k) not in used]
    return min(found, key=lambda k: abs(k - own), default=None)


def is_allowed(d: Diagnostic) -> bool:
    """Is this a fault that a comment may lift, and does one with a reason stand on its line?"""
    return d.code.allowable and bool(allowance(d))


def not_allowed(d: Diagnostic, used: Collection[tuple[str, int]] = ()) -> Diagnostic:
    """The fault as it is; where a comment tries to lift it, with why that does not help.

    Args:
        used: files and lines of comments that lift another.
    """
    if allowance(d) is not None:
        why = "allow[] needs a reason behind it"
        why = why if d.code.allowable else "no comment can allow this"
    elif (line := comment_elsewhere(d, used)) is not None and d.location is not None:
        why = f"a comment allow[{d.code.code}] stands on line {line}, and the value is computed on "
        why += f"line {d.location.line}: put it there"
    else:
        return d
    return replace(d, remedy=f"{d.remedy}; {why}")
