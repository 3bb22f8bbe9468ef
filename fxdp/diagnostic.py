"""Refusals, and everything they tell the user.

A fault is found in a graph, but it has to be mended in the user's model. So a `Diagnostic`
names the line of the model that the faulty op came from, what was met there, why it breaks the
promise that samples stay apart, what would make it right, and how the fault travels to a
gradient.
"""

import linecache
import os
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import ShortenTraceback
from torch.fx import Node


@dataclass(frozen=True)
class Code:
    """A kind of fault: its code, its name (what it flags) and the remedy when nothing is known
    of the op in particular."""

    code: str
    name: str
    remedy: str


CODES: dict[str, Code] = {
    c.name: c
    for c in (
        Code("FXD101", "mixes-samples", "let every sample be computed from itself and parameters"),
        Code("FXD102", "uses-batch-total", "normalise within a sample, or in the loss alone"),
        Code("FXD103", "undeclared-input", "name the axis of its samples in batch_dims"),
        Code("FXD104", "depends-on-batch-size", "do the same for batches of every size"),
        Code(
            "FXD105",
            "fixed-batch-size",
            "take sizes from x.shape, and run no layer along the batch axis",
        ),
        Code("FXD201", "loss-not-separable", "return one loss a sample, or their mean or sum"),
        Code("FXD202", "no-loss", "pass loss_fn, or let the model return a loss"),
        Code("FXD301", "writes-samples", "keep no statistics of samples in buffers"),
        Code("FXD302", "input-gradient", "detach the input, or ask for no gradient of it"),
        Code("FXD401", "no-rule", "write the model with other ops, or pass a Rule for this one"),
        Code("FXD402", "unexplained-gradient", "use the parameter in ops that fxdp has rules for"),
        Code("FXD501", "graph-break", "keep side effects and branches on data out of forward"),
    )
}

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
    """A line of the user's code."""

    file: str
    line: int
    function: str

    @property
    def source(self) -> str:
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


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
    """

    code: Code
    location: Location | None
    op: str
    why: str
    remedy: str
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.location}: " if self.location else ""
        lines = [f"{where}{self.code.code} {self.code.name}: {self.op}: {self.why}"]
        if self.location and self.location.source:
            lines.append(f"    {self.location.source}")
        if self.remedy:
            lines.append(f"  help: {self.remedy}")
        if self.path:
            lines.append(f"  path: {' -> '.join(self.path)}")
        return "\n".join(lines)


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


FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+), in (?P<function>\S+)')
LIBRARIES = tuple(str(Path(m).parent) + os.sep for m in (torch.__file__, __file__))
PASSES = str(Path(__file__).parent.parent / "passes") + os.sep
STANDARD = sysconfig.get_path("stdlib") + os.sep
INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


def is_library(file: str) -> bool:
    """Is this a file of torch, fxdp or Python? Its lines are not the user's to mend."""
    standard = file.startswith(STANDARD) and not any(part in file for part in INSTALLED)
    return standard or file.startswith((*LIBRARIES, PASSES, "<"))


def locate(trace: str | None) -> Location | None:
    """The innermost line of the user's in a stack trace as text."""
    frames = [
        Location(m["file"], int(m["line"]), m["function"]) for m in FRAME.finditer(trace or "")
    ]
    own = [f for f in frames if not is_library(f.file)]
    return own[-1] if own else None


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


def spelled(node: Node) -> str:
    """The op of a node as the user would know it, before it was decomposed."""
    if node.target is torch.ops.fxdp.release.default:
        return "loss"
    original: Any = node.meta.get("original_aten") or node.target
    name = getattr(original, "_opname", None) or getattr(original, "__name__", str(original))
    own = getattr(node.target, "_opname", None) or str(node.target)
    return name if name == own or node.op != "call_function" else f"{name} ({own})"


def diagnose(node: Node, why: str, name: str, path: tuple[str, ...] = ()) -> Diagnostic:
    """The diagnostic of a fault met at a node."""
    code, op = CODES[name], spelled(node)
    known = REMEDIES if name in BY_OP else {}
    remedy = next((text for key, text in known.items() if key in op), code.remedy)
    return Diagnostic(code, nearest(node), op, why, remedy, path)
