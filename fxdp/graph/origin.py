"""Where a node comes from: the user's line, the submodule, the op as it was written; and the
message and remedy for a fault there.
"""

import re
from typing import Any

import torch
from torch.fx import Node

from fxdp.diagnostics.codes import CODES
from fxdp.diagnostics.diagnostic import Diagnostic
from fxdp.diagnostics.location import Location, locate
from fxdp.graph import marks

ADD = (
    "add up rows within a sample: pad them to [N, T, ...] with a mask, and take a sum over T "
    "(torch_geometric.utils.to_dense_batch makes both of a batch of graphs); or declare whose rows "
    "they are in batch_dims, by fxdp.Ragged"
)
# Remedies for ops that people meet often: the first whose word is in the op's name.
REMEDIES = {
    "embedding_bag": "pass ids [N, T] without offsets, short bags filled up with padding_idx, and "
    "weights of single ids in per_sample_weights [N, T]; or declare the ids in batch_dims, by "
    'fxdp.Ragged(offsets="offsets"); and leave scale_grad_by_freq out',
    "embedding_renorm": "leave max_norm out, and constrain the weights after the step",
    "embedding_dense_backward": "leave scale_grad_by_freq out",
    "batch_norm": "replace the batch norm by torch.nn.GroupNorm, which normalises each sample",
    "softmax": "normalise over classes or positions (dim=-1), not over the batch",
    "cumsum": "scan along an axis of the sample, not along the batch",
    "nonzero": "let every expert or branch see all rows, and weigh by the mask; or sort and pick "
    "within a sample",
    "flip": "flip an axis of the sample, not the batch",
    "roll": "roll an axis of the sample, not the batch",
    "sort": "sort along an axis of the sample, not along the batch",
    "mean": "take means over axes of the sample, not over the batch",
    "var": "take statistics over axes of the sample, as torch.nn.GroupNorm does",
    "std": "take statistics over axes of the sample, as torch.nn.GroupNorm does",
    "norm": "take the norm over axes of the sample, not over the batch",
    "bmm": "say which axis is the batch: attention wants [N, T, D] and batch_first=True",
    "mm": "multiply samples by parameters or by themselves, not by other samples",
    "as_strided": "write the view with unfold, narrow, transpose or an index: as_strided goes by "
    "memory, of which single samples have another",
    "arange": "count positions in a sample, not samples",
    "view": "keep the batch axis whole: x.flatten(1), or x.transpose(0, 1) to move it",
    "index_add": ADD,
    "index_select": "pick rows within a sample: pad them to [N, T, ...], and gather along T (edges "
    "as an adjacency [N, T, T]: torch_geometric.utils.to_dense_adj); or declare whose rows they "
    "are in batch_dims, by fxdp.Ragged",
    "scatter": ADD,
    "index": "keep all samples, and give the ones to leave out a loss of 0, or sample_mask",
}
# The codes to which they belong: what is wrong there is the op.
BY_OP = {"mixes-samples", "uses-batch-total", "writes-samples"}


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


def spelled(node: Node) -> str:
    """The op of a node as the user would know it, before it was decomposed."""
    if node.target is marks.release.default:
        return "loss"
    if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.SymInt):
        return "size"
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
