"""What a lint run found: one `Result` for each model, with its findings."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from fxdp.certificate import Certificate
from fxdp.codes import Code
from fxdp.diagnostic import Diagnostic
from fxdp.graph_pass import Study

Status = Literal["proven", "refused", "failed"]


@dataclass(frozen=True)
class Finding:
    """One fault of a model, at a line.

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


@dataclass(frozen=True)
class Result:
    """What became of one model.

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
