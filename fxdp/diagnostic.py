"""Refusals, and everything they tell the user.

A fault is found in a graph, but it has to be mended in the user's model. So a `Diagnostic`
names the line of the model that the faulty op came from, what was met there, why it breaks the
promise that samples stay apart, what would make it right, and how the fault travels to a
gradient.
"""

import ast
import functools
import os
import re
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from fxdp import sources
from fxdp.codes import CODES, Code
from fxdp.printed import plain, plain_source
from fxdp.torch_internals import ShortenTraceback

# Remedies for ops that people meet often: the first whose word is in the op's name.
REMEDIES = {
    "embedding_renorm": "leave max_norm out, and constrain the weights after the step",
    "embedding_dense_backward": "leave scale_grad_by_freq out",
    "batch_norm": "replace the batch norm by torch.nn.GroupNorm, which normalises each sample",
    "softmax": "normalise over classes or positions (dim=-1), not over the batch",
    "cumsum": "scan along an axis of the sample, not along the batch",
    "flip": "flip an axis of the sample, not the batch",
    "roll": "roll an axis of the sample, not the batch",
    "sort": "sort along an axis of the sample, not along the batch",
    "mean": "take means over axes of the sample, not over the batch",
    "var": "take statistics over axes of the sample, as torch.nn.GroupNorm does",
    "std": "take statistics over axes of the sample, as torch.nn.GroupNorm does",
    "norm": "take the norm over axes of the sample, not over the batch",
    "bmm": "say which axis is the batch: attention wants [N, T, D] and batch_first=True",
    "mm": "multiply samples by parameters or by themselves, not by other samples",
    "arange": "count positions in a sample, not samples",
    "view": "keep the batch axis whole: x.flatten(1), or x.transpose(0, 1) to move it",
    "index": "keep all samples, and give the ones to leave out a loss of 0, or sample_mask",
}
# The codes to which they belong: what is wrong there is the op.
BY_OP = {"mixes-samples", "uses-batch-total", "writes-samples"}


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
        super().__init__(
            f"the model cannot be made private, {count} found\n{text}", first_useful_frame=None
        )
        self.diagnostics = diagnostics


class BatchMixingError(ProofError):
    """Some value of one sample depends on another sample, or on how many there are."""


class CaptureError(ProofError):
    """torch.compile could not capture the model as one graph."""


FRAME = re.compile(
    r'File "(?P<file>.+?)", line (?P<line>\d+), in (?P<function>\S+)'
    r"(?:\n    (?P<text>\S.*)\n(?P<marks> +[~^]+)$)?",
    re.MULTILINE,
)
LIBRARIES = tuple(str(Path(m).parent) + os.sep for m in (torch.__file__, __file__))
PASSES = str(Path(__file__).parent.parent / "passes") + os.sep
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


def nearest(node: Node) -> Location | None:
    """The user's line that a node came from, or else the one that its operands came from.

    Operands of unknown origin go first: torch wrote them and the node itself for one line.
    """
    stack, seen = [node], {node}
    while stack:
        candidate = stack.pop()
        if (found := locate(candidate.meta.get("stack_trace"))) is not None:
            return found
        new = [i for i in candidate.all_input_nodes if i not in seen]
        stack += sorted(reversed(new), key=lambda i: not i.meta.get("stack_trace"))
        seen.update(new)
    return None


# How the user's model is written in a captured step, and a step down from it.
ROOT = re.compile(r"^L\['\w+'\](\.fxdp_model)?")
STEP = re.compile(r"\.([^.\[\]]+)|\['?([^\]']+)'?\]")


def module_of(node: Node) -> str:
    """The submodule that a node ran in, by its path in the user's model."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    path = [path for path, _ in stack.values()][-1:]
    steps = [a or b for p in path for a, b in STEP.findall(ROOT.sub("", p))]
    return ".".join(s for s in steps if s != "_modules")


ALLOW = re.compile(r"#\s*fxdp:\s*allow\[(?P<codes>[^\]]*)\][\s:,-]*(?P<reason>.*)$")


def allowance(d: Diagnostic) -> str | None:
    """The reason for which the user's line allows a fault, "" if it gives none; None if it does
    not speak of that fault."""
    comment = ALLOW.search(sources.line(d.location.file, d.location.line)) if d.location else None
    if comment is None or d.code.code not in re.split(r"[\s,]+", comment["codes"]):
        return None
    return comment["reason"].strip()


def is_allowed(d: Diagnostic) -> bool:
    """Is this a fault that a comment may lift, and does one with a reason stand on its line?"""
    return d.code.allowable and bool(allowance(d))


def not_allowed(d: Diagnostic) -> Diagnostic:
    """The fault as it is; where a comment tries to lift it, with why that does not help."""
    if allowance(d) is None:
        return d
    why = "allow[] needs a reason behind it" if d.code.allowable else "no comment can allow this"
    return replace(d, remedy=f"{d.remedy}; {why}")


def spelled(node: Node) -> str:
    """The op of a node as the user would know it, before it was decomposed."""
    if node.target is torch.ops.fxdp.release.default:
        return "loss"
    original: Any = node.meta.get("original_aten") or node.target
    name = getattr(original, "_opname", None) or getattr(original, "__name__", str(original))
    own = getattr(node.target, "_opname", None) or str(node.target)
    return name if name == own or node.op != "call_function" else f"{name} ({own})"


def diagnose(
    node: Node, why: str, name: str, path: tuple[str, ...] = (), shapes: tuple[str, ...] = ()
) -> Diagnostic:
    """The diagnostic of a fault met at a node."""
    code, op = CODES[name], spelled(node)
    known = REMEDIES if name in BY_OP else {}
    remedy = next((text for key, text in known.items() if key in op), code.remedy)
    return Diagnostic(code, nearest(node), op, why, remedy, path, (module_of(node),), shapes)
