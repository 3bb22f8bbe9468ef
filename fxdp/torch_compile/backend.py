"""`torch.compile(model, backend="fxdp", fullgraph=True, options={...})`.

torch finds this backend by its entry point, so that nothing of fxdp has to be imported. The
model must return its loss. Inputs that are tensors with axes hold samples on axis 0, unless
`batch_dims` says otherwise; sizes 0 and 1, which torch.compile gives graphs of their own, and
padding are for `fxdp.compile`. What was released is in `step.privacy` (`fxdp.torch_compile.door`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxdp.backend.partition import compile_marked
from fxdp.capture.errors import BETTER
from fxdp.capture.naming import names_in, roots
from fxdp.capture.step import COMPLEX
from fxdp.capture.totals import check_total
from fxdp.diagnostics.codes import CODES
from fxdp.diagnostics.diagnostic import CaptureError, Diagnostic, ProofError
from fxdp.diagnostics.errors import StepError
from fxdp.distributed.guard import own, refuse_held, refuse_step
from fxdp.graph import marks
from fxdp.graph.nodes import copied
from fxdp.mechanism.deviation import check_deviation
from fxdp.mechanism.keystream import no_key
from fxdp.pipeline import PASSES
from fxdp.torch_compile.door import NEEDED, Door
from fxdp.torch_internals import (
    InstructionTranslator,
    TensorifyScalarRestartAnalysis,
    TensorVariable,
    VariableTracker,
    lookup_backend,
    mark_dynamic,
    replace_optimize,
)


class WithDynamicBatch(TensorifyScalarRestartAnalysis):
    """Asks Dynamo to capture again, now that the batch axes are marked as dynamic."""


def fxdp(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    door: Door | None = None,
) -> Callable[..., Any]:
    """The backend that torch.compile calls with each captured graph.

    Args:
        options: as for `fxdp.compile`; read when torch.compile was called.
        door: of the step that is captured.

    Raises:
        ProofError: the model cannot be proven private, or returns no loss.
        StepError: torch.compile was not called by its name.
    """
    if door is None:
        raise StepError(
            'fxdp is called by torch.compile(model, backend="fxdp", options={...}) alone, which '
            "sees to it that what is released is counted"
        )
    if not torch.is_grad_enabled():  # which torch looks at before it runs a graph again
        plain: Any = lookup_backend(door.settings.backend)
        return plain(gm, example_inputs)
    try:
        return private(gm, example_inputs, door)
    except WithDynamicBatch:
        raise
    except Exception as error:
        door.refusal = str(error)  # torch may be set to suppress it
        raise


def private(gm: GraphModule, example_inputs: Sequence[Any], door: Door) -> Callable[..., Any]:
    """The private step of a captured graph."""
    settings = door.settings
    refuse_parts()
    for name, value in InstructionTranslator.current_tx().f_locals.items():
        axis = door.batch_dims.get(name, 0) if isinstance(door.batch_dims, Mapping) else 0
        check_total(name, value, axis)
    trained = parameters(gm, example_inputs)
    door.fence.around(trained.values())
    refuse_step(settings.apart, door._account.process, trained.items(), StepError)
    refuse_held(trained.values(), StepError)
    check_deviation(*door.scales, {p.dtype for p in trained.values()})
    sources: Any = gm._param_name_to_source
    gm = copied(gm)  # Dynamo goes on using the one that it gave us
    gm._param_name_to_source = sources
    inputs = user_inputs(gm, example_inputs, door.batch_dims)
    make_dynamic(inputs, example_inputs)
    device = a_device(inputs)
    constants = [torch.tensor(v, dtype=torch.float64, device=device) for v in door.scales]
    place = mark(gm, inputs)
    known = names_in(roots(gm, scope()))
    # With opt_einsum, a product of several tensors makes their sizes constants.
    with torch.backends.opt_einsum.flags(enabled=False):
        example = [*example_inputs, *constants, no_key()]
        compiled = compile_marked(gm, example, PASSES, settings, door.record, known)

    def step(*args: Any) -> Any:
        return door.run(compiled, (*args, *constants), place)

    own(step, trained.values())
    return step


def fenced(optimize: Callable[..., Any]) -> Callable[..., Any]:
    """`torch._dynamo.optimize`, which torch.compile calls, with a door around fxdp's steps."""

    def with_door(*args: Any, **kwargs: Any) -> Any:
        context = optimize(*args, **kwargs)
        backend: Any = args[0] if args else kwargs.get("backend")
        if getattr(backend, "compiler_fn", None) is not fxdp:
            return context
        if kwargs.get("guard_filter_fn") is not None:
            raise ValueError("guard_filter_fn leaves out what the proof rests on: leave it out")
        if set(backend.kwargs) - {"options"}:
            raise ValueError(f"fxdp knows options, and not {sorted(backend.kwargs)}")
        door = Door(backend.kwargs.get("options"))
        backend.kwargs = {**backend.kwargs, "door": door}

        def made(model: Any) -> Any:
            if isinstance(owner := getattr(model, "__self__", None), nn.Module):
                raise ValueError(
                    f'{type(owner).__name__}.compile(backend="fxdp") hands out no step, and so no '
                    'account of what is released: step = torch.compile(model, backend="fxdp", ...)'
                )
            step = context(model)
            if isinstance(step, nn.Module):
                step.__dict__["forward"] = door.guarded(step.forward, model)
            else:
                step = door.guarded(step, model)
            step.__dict__["privacy"] = door
            return step

        return made

    return with_door


replace_optimize(fenced)


def refuse_parts() -> None:
    """Refuse a graph that is a part of what is compiled.

    Raises:
        CaptureError: a graph break ended it, or it begins after one.
    """
    seen: Any = InstructionTranslator.current_tx()
    reason = seen.output.compile_subgraph_reason
    broken = getattr(reason, "graph_break", False)
    if broken or seen.f_code.co_name.startswith("torch_dynamo_resume_in_"):
        said = str(getattr(reason, "reason", "")).strip().splitlines() if broken else []
        why = said[0] if said else "what comes after a graph break"
        code = CODES["graph-break"]
        raise CaptureError(
            Diagnostic(code, None, "forward", f"{why} (fullgraph=True says where)", code.remedy)
        )


def scope() -> dict[str, Any]:
    """What the code that is captured sees, as torch's sources ask for it."""
    seen = InstructionTranslator.current_tx().output
    return {"L": seen.local_scope, "G": seen.global_scope}


def parameters(gm: GraphModule, example_inputs: Sequence[Any]) -> dict[str, Tensor]:
    """The parameters among the inputs of a graph, by their place.

    Raises:
        ProofError: another input wants a gradient.
    """
    found: dict[str, Tensor] = {}
    for node, x in zip(gm.graph.find_nodes(op="placeholder"), example_inputs, strict=True):
        if isinstance(x, nn.Parameter):
            found[f"number {len(found)}"] = x
        elif isinstance(x, Tensor) and x.requires_grad:
            code, what = CODES["input-gradient"], argument_name(node) or node.name
            why = f"{what} requires a gradient, and is not an nn.Parameter"
            raise ProofError(Diagnostic(code, None, "forward", why, code.remedy))
    return found


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
        mark_dynamic(x, axis)
    raise WithDynamicBatch(restart_reason="fxdp: the batch axis is dynamic")


def dynamic_axes(x: Tensor) -> set[int]:
    """The axes of a tensor that are marked as dynamic."""
    return getattr(x, "_dynamo_dynamic_indices", set())


def mark(gm: GraphModule, inputs: dict[Node, tuple[int, int]]) -> int:
    """Put fxdp's marks on the inputs and on the loss; cut other outputs off from gradients.

    The numbers that a release depends on become three more inputs, and its key another.

    Returns:
        Which output is the loss.
    """
    graph = gm.graph
    size: Node | None = None
    first = next(n for n in graph.nodes if n.op != "placeholder")
    with graph.inserting_before(first):
        bounds = [graph.placeholder(f"fxdp_{name}") for name in (*NEEDED, "key")]
        for bound in bounds:
            bound._dynamo_source = None  # type: ignore[attr-defined]
        for node, (_, axis) in inputs.items():
            marked = graph.call_function(marks.samples.default, (node, axis))
            node.replace_all_uses_with(marked, lambda user, own=marked: user is not own)
            size = size or graph.call_function(torch.ops.aten.sym_size.int, (node, axis))
        whole: dict[str, Any] = {"dtype": torch.bool, "device": a_device(inputs)}
        mask = graph.call_function(torch.full, ((size,), True), whole)
    output = graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]
    kept = kept_by_model()
    place = loss_place(results)
    with graph.inserting_before(output):
        loss = graph.call_function(marks.release.default, (results[place], *bounds, mask))
        results = [
            loss
            if i == place
            else graph.call_function(marks.shown.default, (graph.call_method("detach", (r,)),))
            if is_tensor(r) and r.name not in kept
            else r
            for i, r in enumerate(results)
        ]
    output.args = (tuple(results),)
    gm.recompile()
    return place


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
    if values[losses[0]].is_complex():
        why, help = f"the model returned {COMPLEX}", BETTER[COMPLEX]
        raise CaptureError(Diagnostic(CODES["no-loss"], None, "forward", why, help))
    return losses[0]
