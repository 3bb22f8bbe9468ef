"""From a captured step to a callable: passes on the joint graph, where AOTAutograd would cut it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from functorch.compile import min_cut_rematerialization_partition
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.autotune.layout import contiguous_is_faster
from fxdp.backend.checkpointing import recompute_forward
from fxdp.backend.delivery import run_apart
from fxdp.backend.halves import RANDOM, UncompiledWarning, finish, noise_check, uncompiled
from fxdp.backend.settings import Record, Settings, usable
from fxdp.capture.dtypes import dtypes_of_kernels
from fxdp.capture.naming import Names, input_names, known_names
from fxdp.capture.patches import scalars_stay_tensors
from fxdp.capture.polyfills import symbolic_kernels
from fxdp.capture.results import results_at_once
from fxdp.capture.settings import Captures, capture_settings, captured_within
from fxdp.capture.step import Step
from fxdp.diagnostics.diagnostic import ProofError
from fxdp.diagnostics.errors import StepError
from fxdp.graph import marks
from fxdp.graph.memory import Peak, peak
from fxdp.graph.nodes import arguments, outputs
from fxdp.graph.passes import Pass, run
from fxdp.graph.randomness import draws_apart, refuse_second_draws
from fxdp.graph.study import ClippedSums, PictureLayout, Size, Streamed, Study, at_hand, study
from fxdp.kernels.precision import full_precision, readable_precision
from fxdp.mechanism import gaussian, together
from fxdp.mechanism.keystream import SECURE_TERMS
from fxdp.ops import DECOMPOSITIONS, FOR_INDUCTOR
from fxdp.proof import facts
from fxdp.proof.guards import refuse_closed
from fxdp.status import line
from fxdp.torch_internals import (
    aot_autograd,
    code_when_called,
    dynamo_exc,
    functorch_config,
    inductor_config,
    select_decomp_table,
)

EXTRA = "fxdp_extra"


def compile_marked(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    passes: tuple[Pass, ...],
    settings: Settings,
    record: Record,
    known: Names,
) -> Callable[..., Any]:
    """Compile a Dynamo graph whose inputs and loss carry fxdp's marks.

    What is returned gives the graph's outputs without gradients, and leaves in `record.ran` what
    is to be differentiated.

    Args:
        known: how the parameters and buffers among the inputs are called.

    Raises:
        ProofError: the graph cannot be proven.
    """
    backend = usable(settings.backend)
    with inductor_config.patch(RANDOM):
        own = FOR_INDUCTOR | gaussian.FOR_INDUCTOR | together.FOR_INDUCTOR
        for_inductor = select_decomp_table() | own
    refuse_closed(gm, settings.table)
    scalars_stay_tensors(gm)
    cut_off_what_is_kept(gm)

    cut: list[bool] = []  # whether the joint graph was proven, rewritten and cut

    def partition(joint: GraphModule, args: Any, *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        names = input_names(joint, gm, example_inputs, known)
        joint.meta["study"] = Study(settings.table, num_fwd_outputs, names)
        record.study = joint.meta["study"]
        joint = run(
            joint,
            passes,
            strategy=settings.strategy,
            inspect_each=settings.inspect,
            how=settings.plan,
            memory_budget=settings.memory_budget,
            clipping=settings.clipping,
            streams=record.streams,
            terms=SECURE_TERMS if settings.secure else 1,
            number=record.keys.number,
            decompositions=for_inductor if backend == "inductor" else None,
        )
        record.compilations += 1
        asked = settings.plan == "measured" and backend == "inductor"
        study(joint).put(PictureLayout(asked and contiguous_is_faster(joint, at_hand(joint))))
        if settings.checkpoint == "always":
            recompute_forward(joint, num_fwd_outputs)
        # A view that is kept costs nothing to the partitioner's mind, but Inductor copies some, and
        # fails on one whose strides cannot be ordered without knowing the batch size.
        with draws_apart(joint), functorch_config.patch(recompute_views=True):
            forward, back = min_cut_rematerialization_partition(
                joint, args, num_fwd_outputs=num_fwd_outputs, **kwargs
            )
        if len(facts.draws(back)) != len(facts.draws(joint)):
            raise AssertionError("noise was lost or merged when the graph was split")
        refuse_second_draws(forward, back)
        study(joint).put(predicted(joint, forward, back, num_fwd_outputs))
        hide_extras(back)
        cut.append(True)
        return forward, back

    def forward_compiler(graph: GraphModule, args: Sequence[Any]) -> Callable[..., Any]:
        return finish(graph, args, backend, settings, record, is_backward=False)

    def backward_compiler(graph: GraphModule, args: Sequence[Any]) -> Callable[..., Any]:
        names = show_extras(graph)
        with full_precision():
            compiled = finish(graph, args, backend, settings, record, is_backward=True)
        check = noise_check(graph, record)

        def step(args: list[Any]) -> list[Any]:
            check(args)
            with full_precision():
                out = list(compiled(args))
            kept = len(out) - len(names)
            record.extras = dict(zip(names, out[kept:], strict=True))
            return out[:kept]

        step._boxed_call = True  # type: ignore[attr-defined]
        return step

    compiler = aot_autograd(
        fw_compiler=forward_compiler,
        bw_compiler=backward_compiler,
        partition_fn=partition,
        decompositions=DECOMPOSITIONS,
    )
    try:
        with (
            line(),
            symbolic_kernels(),
            dtypes_of_kernels(),
            results_at_once(),
            readable_precision(),
            code_when_called(True),  # most graphs on the way never run
        ):
            compiled = compiler(gm, example_inputs)
    except (dynamo_exc.RestartAnalysis, ProofError, StepError, UncompiledWarning):
        raise
    except Exception as error:
        if not cut or backend == "eager":
            raise
        uncompiled("a step", error, record)
        eager = replace(settings, backend="eager")
        return compile_marked(gm, example_inputs, passes, eager, record, known)

    sums = record.compiled().of(ClippedSums)
    noisy, public = frozenset(sums.noisy), frozenset(sums.public)
    results: Any = arguments(gm.graph.output_node())[0]
    place = next(i for i, r in enumerate(results) if isinstance(r, Node) and is_mark(r))

    def apart(*args: Any) -> list[Any]:
        record.ran = None
        outputs, ran = run_apart(compiled, args, place)
        record.ran = replace(ran, noisy=noisy, public=public)
        return outputs

    return apart


def is_mark(node: Node) -> bool:
    """Is this where the loss leaves the model?"""
    return node.target in (marks.release, marks.release.default)


def cut_off_what_is_kept(gm: GraphModule) -> None:
    """Let the loss alone have a gradient: what the model keeps, nobody differentiates by."""
    output = gm.graph.output_node()
    results: Any = arguments(output)[0]
    for r in results:
        value = r.meta.get("example_value") if isinstance(r, Node) and not is_mark(r) else None
        if isinstance(value, Tensor) and value.requires_grad:
            with gm.graph.inserting_after(r):
                plain = gm.graph.call_method("detach", (r,))
            plain.meta = r.meta | {"example_value": value.detach()}
            output.replace_input_with(r, plain)
    gm.recompile()


def predicted(joint: GraphModule, forward: GraphModule, back: GraphModule, outputs: int) -> Peak:
    """How much memory a step takes, at the batch size at hand."""
    size, n = at_hand(joint), study(joint).of(Size).node
    found = peak(forward, back, outputs, size(n.meta["val"]), size)
    streamed = study(joint).found(Streamed)
    return found if streamed is None else replace(found, highest=found.highest + streamed.scratch)


def hide_extras(back: GraphModule) -> None:
    """Take the outputs that are no gradients off the backward graph: AOTAutograd counts them.

    They stay in the graph as nodes, marked, for `show_extras`.
    """
    output = back.graph.output_node()
    values, descriptors = outputs(back), list(output.meta["desc"])
    while isinstance(descriptors[-1], str):
        node, name = values.pop(), descriptors.pop()
        assert isinstance(node, Node)
        node.meta.setdefault(EXTRA, []).append(name)
    output.args = (values,)
    output.meta["desc"] = descriptors
    back.recompile()


def show_extras(back: GraphModule) -> list[str]:
    """Put hidden outputs back, and return their names."""
    output = back.graph.output_node()
    found = [(name, node) for node in back.graph.nodes for name in node.meta.get(EXTRA, [])]
    output.args = ([*outputs(back), *(node for _, node in found)],)
    back.recompile()
    return [name for name, _ in found]


def compiled_step(
    step: Step,
    settings: Settings,
    record: Record,
    passes: tuple[Pass, ...],
    capturing: Captures = capture_settings,
) -> Callable[..., Any]:
    """A step of a model (`fxdp.capture.step.own_step`) as torch compiles it.

    Args:
        passes: what is done with its joint graph.
        capturing: what is entered while torch captures the step.
    """

    def fxdp(gm: GraphModule, example_inputs: Any) -> Callable[..., Any]:
        known = known_names(step.fxdp_model, step.loss_fn)
        return compile_marked(gm, example_inputs, passes, settings, record, known)

    return captured_within(step, fxdp, capturing)


class Proven(ProofError):
    """Raised to leave a capture once the proof is done; no error."""

    def __init__(self) -> None:
        super().__init__()


def stop(gm: GraphModule) -> GraphModule:
    """Leave the capture: there is nothing to compile."""
    raise Proven
