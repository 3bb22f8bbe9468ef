"""`torch.compile(model, backend="fxdp", options={...})`.

torch finds this backend by its entry point, so that nothing of fxdp has to be imported. The
model must return its loss. Inputs that are tensors with axes hold samples on axis 0, unless
`batch_dims` says otherwise; sizes 0 and 1, which torch.compile gives graphs of their own, and
padding are for `fxdp.compile`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.tensor import TensorVariable
from torch.fx import GraphModule, Node

from fxdp.backend import Record, compile_marked
from fxdp.clipping import Adaptive
from fxdp.diagnostic import CODES, Diagnostic, ProofError
from fxdp.graph_pass import copied
from fxdp.keystream import fresh_key, no_key
from fxdp.options import checked_options
from fxdp.pipeline import PASSES
from fxdp.totals import check_total

OPTIONS = (
    "max_grad_norm",
    "noise_multiplier",
    "expected_batch_size",
    "clipping",
    "strategy",
    "backend",
    "plan",
    "memory_budget",
    "secure",
    "batch_dims",
)


class WithDynamicBatch(TensorifyScalarRestartAnalysis):
    """Asks Dynamo to capture again, now that the batch axes are marked as dynamic."""


def fxdp(
    gm: GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """The backend that torch.compile calls with each captured graph.

    Args:
        options: `max_grad_norm`, `noise_multiplier` and `expected_batch_size` as for
            `fxdp.compile`; and, if wanted, `strategy`, `backend` and `batch_dims`.

    Raises:
        ValueError, TypeError: the options are not as described.
        ProofError: the model cannot be proven private, or returns no loss.
    """
    given = dict(options or {})
    if unknown := set(given) - set(OPTIONS):
        raise ValueError(f"options has {sorted(unknown)}, but fxdp knows {', '.join(OPTIONS)}")
    if missing := [name for name in OPTIONS[:3] if name not in given]:
        raise ValueError(f"options lacks {', '.join(missing)}")
    batch_dims = given.pop("batch_dims", 0)
    for name, value in InstructionTranslator.current_tx().f_locals.items():
        check_total(name, value, batch_dims.get(name, 0) if isinstance(batch_dims, Mapping) else 0)
    scales, settings = checked_options(**given)
    if isinstance(settings.clipping, Adaptive):
        raise ValueError("clipping='adaptive' moves the clip bound, which needs fxdp.compile")
    sources: Any = gm._param_name_to_source
    gm = copied(gm)  # Dynamo goes on using the one that it gave us
    gm._param_name_to_source = sources
    inputs = user_inputs(gm, example_inputs, batch_dims)
    make_dynamic(inputs, example_inputs)
    constants = [torch.tensor(v, dtype=torch.float64, device=a_device(inputs)) for v in scales]
    mark(gm, inputs)
    # With opt_einsum, a product of several tensors makes their sizes constants.
    with torch.backends.opt_einsum.flags(enabled=False):
        example = [*example_inputs, *constants, no_key()]
        compiled = compile_marked(gm, example, PASSES, settings, Record())

    def step(*args: Any) -> Any:
        key = fresh_key(settings.secure) if scales[1] > 0 else no_key()
        return compiled(*args, *constants, key)

    return step


def a_device(inputs: dict[Node, tuple[int, int]]) -> torch.device:
    """The device of the samples.

    Raises:
        ProofError: no input holds samples.
    """
    for node in inputs:
        return node.meta["example_value"].device
    why = "no argument of the model is a tensor that could hold samples"
    raise ProofError(Diagnostic(CODES["undeclared-input"], None, "forward", why, ""))


def user_inputs(
    gm: GraphModule, example_inputs: Sequence[Any], batch_dims: Any
) -> dict[Node, tuple[int, int]]:
    """Placeholders that hold samples: their position and the axis of the samples."""
    found: dict[Node, tuple[int, int]] = {}
    for position, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        example = example_inputs[position]
        if not isinstance(example, Tensor) or isinstance(example, torch.nn.Parameter):
            continue
        name = argument_name(node)
        if name is None:
            continue
        axis = batch_dims.get(name, 0) if isinstance(batch_dims, Mapping) else batch_dims
        if axis is not None and example.dim() > 0:
            found[node] = (position, axis % example.dim())
    return found


def argument_name(node: Node) -> str | None:
    """The argument that an input is, or is a part of; None for what belongs to the module."""
    source: Any = getattr(node, "_dynamo_source", None)
    while getattr(source, "base", None) is not None:
        if "NNModule" in type(source).__name__ or "ParamBuffer" in type(source).__name__:
            return None
        source = source.base
    return source.local_name if getattr(source, "is_input", False) else None


def make_dynamic(inputs: dict[Node, tuple[int, int]], example_inputs: Sequence[Any]) -> None:
    """See to it that the batch axes are symbols; where they are numbers, capture again.

    Raises:
        ProofError: a batch of fewer than two samples.
        WithDynamicBatch: the axes are marked now.
    """
    fixed = [(example_inputs[p], axis) for p, axis in inputs.values()]
    fixed = [(x, axis) for x, axis in fixed if axis not in dynamic_axes(x)]
    nodes = {n: n.meta["example_value"].shape[axis] for n, (_, axis) in inputs.items()}
    if all(isinstance(size, torch.SymInt) for size in nodes.values()):
        return
    if any(x.shape[axis] < 2 for x, axis in fixed):
        why = "torch.compile fixes batch sizes 0 and 1; fxdp.compile takes them"
        raise ProofError(Diagnostic(CODES["fixed-batch-size"], None, "forward", why, ""))
    if not fixed:
        code = CODES["fixed-batch-size"]
        raise ProofError(
            Diagnostic(code, None, "forward", "the model fixes its batch size", code.remedy)
        )
    for x, axis in fixed:
        torch._dynamo.mark_dynamic(x, axis)
    raise WithDynamicBatch(restart_reason="fxdp: the batch axis is dynamic")


def dynamic_axes(x: Tensor) -> set[int]:
    """The axes of a tensor that are marked as dynamic."""
    return getattr(x, "_dynamo_dynamic_indices", set())


def mark(gm: GraphModule, inputs: dict[Node, tuple[int, int]]) -> None:
    """Put fxdp's marks on the inputs and on the loss; cut other outputs off from gradients.

    The numbers that a release depends on become three more inputs, and its key another.
    """
    ops, graph = torch.ops.fxdp, gm.graph
    size: Node | None = None
    first = next(n for n in graph.nodes if n.op != "placeholder")
    with graph.inserting_before(first):
        bounds = [graph.placeholder(f"fxdp_{name}") for name in (*OPTIONS[:3], "key")]
        for bound in bounds:
            bound._dynamo_source = None  # type: ignore[attr-defined]
        for node, (_, axis) in inputs.items():
            marked = graph.call_function(ops.samples.default, (node, axis))
            node.replace_all_uses_with(marked, lambda user, own=marked: user is not own)
            size = size or graph.call_function(torch.ops.aten.sym_size.int, (node, axis))
        whole: dict[str, Any] = {"dtype": torch.bool, "device": a_device(inputs)}
        mask = graph.call_function(torch.full, ((size,), True), whole)
    output = graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]
    kept = kept_by_model()
    place = loss_place(results)
    with graph.inserting_before(output):
        loss = graph.call_function(ops.release.default, (results[place], *bounds, mask))
        results = [
            loss
            if i == place
            else graph.call_function(ops.shown.default, (graph.call_method("detach", (r,)),))
            if is_tensor(r) and r.name not in kept
            else r
            for i, r in enumerate(results)
        ]
    output.args = (tuple(results),)
    gm.recompile()


def kept_by_model() -> set[str]:
    """Names of the tensors that the model stores where they outlive the step.

    An attribute, a list or a global that the model writes to makes Dynamo return the tensor from
    the graph, and store it afterwards. What is not returned to the caller gets no mark, so that
    the proof sees to it that it holds no samples.
    """
    found: set[str] = set()

    def look(value: VariableTracker) -> None:
        if isinstance(value, TensorVariable):
            found.add(value.as_proxy().node.name)

    effects = InstructionTranslator.current_tx().output.side_effects
    written = [
        v
        for v in effects.id_to_variable.values()
        if v.source is not None and effects.is_modified(v)
    ]
    VariableTracker.visit(look, [*written, *effects.store_attr_mutations.values()])
    return found


def is_tensor(result: Any) -> bool:
    """Is this output a tensor?"""
    return isinstance(result, Node) and isinstance(result.meta.get("example_value"), Tensor)


def loss_place(results: list[Any]) -> int:
    """Which output is the loss: the only one, or the only 0-d one that has a gradient.

    Raises:
        ProofError: there is no such output, or more than one.
    """
    values = {i: r.meta["example_value"] for i, r in enumerate(results) if is_tensor(r)}
    losses = [i for i, v in values.items() if v.requires_grad and v.dim() == 0]
    if not losses and len(values) == 1:
        losses = [i for i, v in values.items() if v.requires_grad and v.dim() == 1]
    if len(losses) != 1:
        why = f"the model returns {len(losses)} tensors that could be its loss"
        code = CODES["no-loss"]
        raise ProofError(Diagnostic(code, None, "forward", why, code.remedy))
    return losses[0]
