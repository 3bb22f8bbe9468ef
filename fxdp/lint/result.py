"""What a lint run found: one `Result` for each model, with its findings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from fxdp.diagnostics.codes import Code
from fxdp.diagnostics.printed import plain, plain_lines, plain_source

if TYPE_CHECKING:  # a report is written without torch, too
    from torch import nn

    from fxdp.diagnostics.diagnostic import Diagnostic
    from fxdp.graph.study import Study
    from fxdp.proof.certificate import Certificate

COMMANDS = ("::", "##[")  # what GitHub takes for a command where a line of a log begins so
LARGEST = 2**31 - 2  # of a line or column, for whoever reads a report
Status = Literal["proven", "refused", "failed"]


def cleaned(value: Any) -> Any:
    """A text, or several, of which each is one line of printed characters; else as it is."""
    if isinstance(value, tuple):
        return tuple(cleaned(v) for v in value)
    return plain(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Finding:
    """One fault of a model, at a line.

    Guarantees:
        No text in it holds a control character or an end of a line, whatever it was made of; a
        line and columns are positive, and the end is behind the start.

    Attributes:
        path: the file, as the user would write it from where the command runs.
        line, column, end_column: from 1; the end is excluded. Line 1 where nothing is known.
        code: the kind of fault.
        message: the op and what was met, in a sentence without a full stop.
        help: what would make it right; "" if nothing is known.
        modules: the submodules that have it, "" for the model itself.
        shapes: of the op's operands, with N for the number of samples.
        route: the ops from the fault to the gradient or output that it spoils.
        target: the model, as `PATH:OBJECT`.
        source: the line itself, as it stands in the file.
    """

    path: str
    line: int
    column: int
    end_column: int
    code: Code
    message: str
    help: str
    modules: tuple[str, ...]
    shapes: tuple[str, ...]
    route: tuple[str, ...]
    target: str
    source: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            clean = plain_source(value) if field.name == "source" else cleaned(value)
            object.__setattr__(self, field.name, clean)
        if self.path.lstrip().startswith(COMMANDS):  # a line of a report begins with the path
            object.__setattr__(self, "path", f"./{self.path}")
        column = min(max(self.column, 1), LARGEST)
        object.__setattr__(self, "line", min(max(self.line, 1), LARGEST))
        object.__setattr__(self, "column", column)
        object.__setattr__(self, "end_column", max(min(self.end_column, LARGEST), column + 1))


@dataclass(frozen=True)
class Result:
    """What became of one model.

    Guarantees:
        As for a finding; `details` alone has several lines.

    Attributes:
        target: the model, as `PATH:OBJECT`.
        path: the file that defines it.
        line: where it is defined.
        status: "failed" where the model could not be built, or an argument was missing.
        findings: why it was refused.
        diagnostics: the same, as the proof raised them.
        trouble: why it failed, in one line; "" otherwise.
        details: the traceback of a failure, for `-v`; "" otherwise.
        certificate: of a proven model.
        study: what the proof learned, also where it failed; None before a graph was captured.
        model: on fake tensors; None where it could not be built.
        seconds: of the proof.
        assumed: what nobody said of the step, and was chosen: inputs, a loss.
    """

    target: str
    path: str
    line: int
    status: Status
    findings: tuple[Finding, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    trouble: str = ""
    details: str = ""
    certificate: Certificate | None = None
    study: Study | None = None
    model: nn.Module | None = None
    seconds: float = 0.0
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("target", "path", "trouble", "assumed"):
            object.__setattr__(self, name, cleaned(getattr(self, name)))
        object.__setattr__(self, "details", plain_lines(self.details))


@dataclass(frozen=True)
class LeftOut:
    """Something that was not linted, as nobody asked for it, and why; clean as a result is."""

    target: str
    why: str

    def __post_init__(self) -> None:
        for name in ("target", "why"):
            object.__setattr__(self, name, cleaned(getattr(self, name)))
