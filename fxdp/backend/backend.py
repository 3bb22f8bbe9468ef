"""From a captured program to a compiled one that releases only private gradients.

fxdp is a partition function: AOTAutograd traces forward and backward into one joint graph and
asks how to split it; before it is split, the pipeline proves and rewrites it. Both halves then
run as they are (`eager`) or are compiled by Inductor; the backward half, which has all norms and
sums, in full precision. What Inductor makes of a graph is compared with the graph before anything
is released, at each kind of batch size (`fxdp.backend.check`).
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.autotune.layout import contiguous_is_faster
from fxdp.backend.check import Checked, coarsest
from fxdp.backend.checkpointing import recompute_forward
from fxdp.backend.delivery import Ran, run_apart
from fxdp.backend.rows import Rows
from fxdp.capture.naming import Names, input_names
from fxdp.capture.polyfills import symbolic_kernels
from fxdp.diagnostics.errors import NotCompiled
from fxdp.forms.batch import HALVES
from fxdp.graph import marks
from fxdp.graph.memory import Peak, peak
from fxdp.graph.nodes import arguments, copied, outputs
from fxdp.graph.passes import Pass, run
from fxdp.graph.randomness import draws_apart, refuse_second_draws
from fxdp.graph.study import Study, at_hand, study
from fxdp.graph.sums import value
from fxdp.kernels.precision import full_precision, readable_precision
from fxdp.mechanism import gaussian
from fxdp.mechanism.clipping import Clipping, Flat
from fxdp.mechanism.deviation import check_deviation
from fxdp.mechanism.keystream import SECURE_TERMS
from fxdp.mechanism.run_key import RunKey
from fxdp.ops import DECOMPOSITIONS, FOR_INDUCTOR, RULES
from fxdp.proof import facts
from fxdp.proof.guards import refuse_closed, scalars_stay_tensors
from fxdp.rules import Table
from fxdp.status import line, say
from fxdp.torch_internals import (
    InvalidCxxCompiler,
    OpOverload,
    aot_autograd,
    compile_fx_inner,
    functorch_config,
    get_cpp_compiler,
    inductor_config,
    select_decomp_table,
)

aten = torch.ops.aten
EXTRA = "fxdp_extra"
# The random numbers of a compiled step are those of an eager one: seeds reproduce runs.
RANDOM = {"fallback_random": True}
Backend = Literal["inductor", "eager"]
Checkpoint = Literal["never", "except_last", "always"]


@dataclass(frozen=True)
class Settings:
    """How a model is compiled; of all this, `clipping` and `secure` alone change what is released.

    Attributes:
        strategy: for per-sample norms, "auto" or one of `fxdp.forms.batch.Strategy`.
        plan, memory_budget: how "auto" chooses, and bytes it may spend (`fxdp.passes.plan`).
        backend: who runs the graphs.
        table: the rules.
        check: compare compiled code with its graph, at each kind of batch size.
        clipping: how a sample's gradient is brought to a bounded norm.
        reduction: how the user's own loss of the model's output puts rows together, if any.
        secure: whether noise is made of several terms, from keys of the system's entropy.
        checkpoint: which pieces of a batch work their activations out again.
        apart: whether other processes, if there are any, were said to train apart.
        inspect: also return the per-sample gradients, for `per_sample_grads`.
    """

    strategy: str = "auto"
    backend: Backend = "inductor"
    table: Table = field(default_factory=lambda: RULES)
    check: bool = True
    inspect: bool = False
    plan: str = "measured"
    memory_budget: int | None = None
    reduction: str = ""
    secure: bool = False
    clipping: Clipping = field(default_factory=Flat)
    checkpoint: Checkpoint = "never"
    apart: bool = False


@dataclass
class Record:
    """What a compiled module remembers of its compilations and its last step.

    Attributes:
        study: of the last compiled graph.
        compilations: how many graphs were compiled.
        extras: what the last backward returned beside gradients: norms, per-sample gradients.
        fallbacks: what compiled code got wrong, for the certificate.
        ran: the step that ran last, until somebody takes it.
        keys: of the noise; they number the parameters, too.
    """

    study: Study | None = None
    compilations: int = 0
    extras: dict[str, Tensor] = field(default_factory=lambda: {})
    fallbacks: list[str] = field(default_factory=lambda: [])
    ran: Ran | None = None
    keys: RunKey = field(default_factory=RunKey)

    def taken(self) -> Ran:
        """The step that has just run, once.

        Raises:
            NotCompiled: none has: torch ran something else.
        """
        ran, self.ran = self.ran, None
        if ran is None:
            raise NotCompiled
        return ran


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
        for_inductor = select_decomp_table() | FOR_INDUCTOR | gaussian.FOR_INDUCTOR
    refuse_closed(gm, settings.table)
    scalars_stay_tensors(gm)

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
            terms=SECURE_TERMS if settings.secure else 1,
            number=record.keys.number,
            decompositions=for_inductor if backend == "inductor" else None,
        )
        record.compilations += 1
        if settings.plan == "measured" and backend == "inductor":
            record.study.contiguous = contiguous_is_faster(joint, at_hand(joint))
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
        study(joint).peak = predicted(joint, forward, back, num_fwd_outputs)
        hide_extras(back)
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
    with line(), symbolic_kernels(), readable_precision():
        compiled = compiler(gm, example_inputs)

    results: Any = arguments(gm.graph.output_node())[0]
    place = next(i for i, r in enumerate(results) if isinstance(r, Node) and is_mark(r))

    def apart(*args: Any) -> list[Any]:
        record.ran = None
        outputs, record.ran = run_apart(compiled, args, place)
        return outputs

    return apart


def is_mark(node: Node) -> bool:
    """Is this where the loss leaves the model?"""
    return node.target in (marks.release, marks.release.default)


def finish(
    graph: GraphModule,
    args: Sequence[Any],
    backend: Backend,
    settings: Settings,
    record: Record,
    is_backward: bool,
) -> Callable[[list[Any]], Any]:
    """A callable for one half of the graph."""
    eager = make_boxed_func(safe_views(copied(graph)))
    if backend == "eager":
        return eager
    say(f"generating code for the {'backward' if is_backward else 'forward'} half")
    noise = noise_input(graph, record) if is_backward else None
    # What is rounded to half precision is what an eager step rounds, so that they can be compared.
    options: dict[str, Any] = {**RANDOM, "emulate_precision_casts": True}
    if record.study is not None and record.study.contiguous:
        options["layout_optimization"] = False
    with inductor_config.patch(options):
        compiled = compile_fx_inner(graph, args, is_backward=is_backward)
    if not settings.check:
        return compiled  # type: ignore[return-value]
    assert record.study is not None
    n = record.study.size
    rows = Rows.of(graph, n.meta["val"]) if n is not None else None
    half = "backward" if is_backward else "forward"
    return Checked(compiled, eager, noise, record.fallbacks, coarsest(graph), rows, half)  # type: ignore[arg-type]


def predicted(joint: GraphModule, forward: GraphModule, back: GraphModule, outputs: int) -> Peak:
    """How much memory a step takes, at the batch size at hand."""
    size, n = at_hand(joint), study(joint).size
    assert n is not None
    return peak(forward, back, outputs, size(n.meta["val"]), size)


def safe_views(graph: GraphModule) -> GraphModule:
    """Views that copy where they must: eager kernels may return other strides than traced."""
    for node in graph.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default
    graph.recompile()
    return graph


def noise_check(graph: GraphModule, record: Record) -> Callable[[list[Any]], None]:
    """A check that what arrives at the loss does not make the noise overflow.

    Of the inputs of the backward half; not where its look at them would wait for a GPU, but for
    parameters in half precision.

    Raises:
        ValueError: by the check.
    """
    study = record.study
    assert study is not None
    dtypes = {value(c.gradient.node).dtype for c in study.clipped}
    inputs = graph.graph.find_nodes(op="placeholder")
    given = noise_arguments(graph)
    wanted = [given.get(name) for name in ("scale", "expected", "tangent")]
    if not all(node in inputs for node in wanted):
        return lambda args: None
    places = [inputs.index(node) for node in wanted]

    def check(args: list[Any]) -> None:
        found = [args[place] for place in places]
        if found[0].device.type == "cpu" or dtypes & set(HALVES):
            scale, expected, tangent = map(float, found)
            check_deviation(scale, 1.0 if scale else 0.0, expected, dtypes, tangent)

    return check


def noise_arguments(graph: GraphModule) -> dict[str, Any]:
    """The arguments of the first op that makes noise from a key, by their names."""
    for node in graph.graph.nodes:
        if "draw" in node.kwargs:  # of an op that works in place
            return dict(node.kwargs)
        if isinstance(node.target, OpOverload):
            names = [a.name for a in node.target._schema.arguments]
            if "draw" in names:
                return dict(zip(names, arguments(node), strict=False)) | dict(node.kwargs)
    return {}


def noise_input(graph: GraphModule, record: Record) -> int | None:
    """Which input of the backward graph the noise is multiplied by: sigma, or sigma C where the
    forward half has worked that out."""
    assert record.study is not None
    assert record.study.mark is not None
    inputs = graph.graph.find_nodes(op="placeholder")
    names = [n.name for n in inputs]
    if (name := record.study.mark.sigma.name) in names:
        return names.index(name)
    scale = noise_arguments(graph).get("scale")
    return inputs.index(scale) if scale in inputs else None


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


@functools.cache
def has_compiler() -> bool:
    """Is there a C++ compiler for Inductor's code on the CPU? Warns once if not."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        warnings.warn("fxdp: no C++ compiler was found, so graphs run eagerly", stacklevel=2)
        return False
    return True


def usable(backend: Backend) -> Backend:
    """The backend, or eager where Inductor cannot compile."""
    return "eager" if backend == "inductor" and not has_compiler() else backend
