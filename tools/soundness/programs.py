"""A program with samples in some of its tensors, as a graph with claims.

The program is traced once, forward and backward, with the number of samples N as the only size
that is a symbol; then it goes through the pipeline's own passes. Every result ends with a
claim, which is a placement, or with the reason why there is none.

The backward pass starts from a cotangent for each result of the program. It has the placement
of that result (a sum over samples hands the same cotangent to every sample).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._functorch._aot_autograd.descriptors import (
    GradAOTOutput,
    ParamAOTInput,
    PlainAOTInput,
    PlainAOTOutput,
)
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from fxdp.backend.halves import safe_views
from fxdp.capture.patches import one_kernel
from fxdp.diagnostics.diagnostic import ProofError
from fxdp.graph import marks
from fxdp.graph.nodes import mark, outputs
from fxdp.graph.study import Joint, Samples, Study, study
from fxdp.graph.sums import holds_samples, is_total
from fxdp.lint.proving import TimeUp, limit
from fxdp.ops import DECOMPOSITIONS, RULES
from fxdp.passes.localize import counts, localize
from fxdp.passes.prove import batch_symbol, needed_for
from fxdp.passes.tidy import tidy
from fxdp.placement import Mixed, Partial, Placement, Replicate
from fxdp.proof.guards import always, names_of, question
from fxdp.proof.placing import place
from fxdp.rules import Call, Rule, Table

BATCH_NORM = torch.ops.aten.native_batch_norm.default
LIMIT = 20  # seconds that one capture may take
SCALES = 4  # clip bound, noise multiplier, expected batch size and key


class NotCapturedError(Exception):
    """The program cannot be traced, or only for a certain number of samples."""


@dataclass(frozen=True)
class Refused:
    """No claim about a result.

    Attributes:
        why: the rule's words, with the op.
    """

    why: str


Claim = Placement | Refused


@dataclass(frozen=True)
class Program:
    """A function of tensors, some of which hold samples.

    Attributes:
        function: takes the tensors, returns a list of tensors.
        tensors: for one batch; they give shapes and dtypes.
        dims: for each tensor, the axis of its samples; None where all samples share it.
        wanted: the tensors to differentiate by.
        losses: whether the one result is a loss, which is released, or results of any kind.
    """

    function: Callable[..., list[Tensor]]
    tensors: Sequence[Tensor]
    dims: Sequence[int | None]
    wanted: Sequence[bool]
    losses: bool = False

    @property
    def size(self) -> int:
        """How many samples the tensors hold."""
        pairs = zip(self.tensors, self.dims, strict=True)
        return next(x.shape[d] for x, d in pairs if d is not None)


@torch.library.custom_op("fxdp_test::cotangent", mutates_args=())
def cotangent(out: Tensor, index: int) -> Tensor:
    """Stands for the cotangent of a result; `local_runs` puts numbers in its place."""
    raise AssertionError("a cotangent was computed")


@cotangent.register_fake
def _(out: Tensor, index: int) -> Tensor:
    return torch.empty_like(out)


def given_back(call: Call, out: Any, index: Any) -> Placement:
    """A sum over samples hands one cotangent to all of them."""
    return Replicate() if isinstance(out.placement, Partial | Replicate) else out.placement


COTANGENT = torch.ops.fxdp_test.cotangent.default
OWN_RULES: Table = {COTANGENT: Rule(given_back)}


def differentiable(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def gradients_of(
    outs: Sequence[Tensor], wanted: list[Tensor], cotangents: Callable[[int, Tensor], Tensor]
) -> list[Tensor | None]:
    """What autograd finds for `wanted`, from a cotangent for each result that has a gradient."""
    ends = [(i, o) for i, o in enumerate(outs) if differentiable(o) and o.requires_grad]
    if not ends or not wanted:
        return [None] * len(wanted)
    back = [cotangents(i, o.detach()) for i, o in ends]
    return list(torch.autograd.grad([o for _, o in ends], wanted, back, allow_unused=True))


def joint(program: Program, count: dict[str, int]) -> Callable[..., list[Any]]:
    """Forward and backward as one function, with fxdp's marks."""

    def run(n: Any, mask: Tensor, tangent: Tensor, own: Tensor, *rest: Tensor) -> list[Any]:
        scales, leaves = rest[:SCALES], rest[SCALES:]
        marked = [
            x if d is None else marks.samples(x, d)
            for x, d in zip(leaves, program.dims, strict=True)
        ]
        wanted = [x for x, w in zip(leaves, program.wanted, strict=True) if w]
        outs = program.function(*marked)
        if program.losses:
            loss = marks.release(outs[0], *scales, mask)
            found = list(torch.autograd.grad(loss, wanted, tangent, allow_unused=True))
            count["forward"] = len(outs)
            shown = [marks.shown(o.detach()) for o in outs[1:]]
            return [loss, *shown, *found]
        # The passes look for a loss; this one has nothing to do with the program.
        released = marks.release(own, *scales, mask)
        found = gradients_of(outs, wanted, lambda i, o: torch.ops.fxdp_test.cotangent(o, i))
        count["forward"] = len(outs) + 1
        return [released, *(o.detach() for o in outs), *found]

    return run


def fakes(program: Program, hint: int) -> list[Any]:
    """N, and tensors without data: mask, tangent, a loss, the scales, and the program's own."""
    env = ShapeEnv()
    source = ConstantSource("n")
    symbol = env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC)
    n = env.create_symintnode(symbol, hint=hint, source=source)
    mode = FakeTensorMode(shape_env=env)
    mode.cache_enabled = False  # a result from the cache asks no questions
    with mode:
        made: list[Any] = [n, torch.empty(n, dtype=torch.bool), torch.empty(()), torch.empty(n)]
        made += [torch.empty(()) for _ in range(SCALES)]
        for x, dim, wanted in zip(program.tensors, program.dims, program.wanted, strict=True):
            shape = [n if d == dim else s for d, s in enumerate(x.shape)]
            made.append(torch.empty(shape, dtype=x.dtype, requires_grad=wanted))
    return made


def captured(program: Program, table: Table = RULES) -> GraphModule:
    """The joint graph, before the first pass.

    Raises:
        NotCapturedError: torch cannot trace it.
    """
    inputs = fakes(program, program.size)
    count: dict[str, int] = {}
    function = joint(program, count)

    def trace(f: Callable[..., Any]) -> GraphModule:
        return make_fx(f, decomposition_table=DECOMPOSITIONS, _allow_non_fake_inputs=True)(*inputs)

    try:
        with (
            limit(LIMIT),
            torch.backends.opt_einsum.flags(enabled=False),
            one_kernel(),
            inputs[1].fake_mode,
        ):
            gm = trace(function)
            if mutates(gm):
                gm = trace(dispatch_functionalize(function))
    except TimeUp:
        raise NotCapturedError("it takes too long") from None
    except Exception as error:
        text = next((t for t in str(error).splitlines() if t.strip()), "")
        raise NotCapturedError(f"{type(error).__name__}: {text[:80]}") from None
    if mutates(gm):
        raise NotCapturedError("it writes to a tensor")
    described(gm, program, count["forward"])
    gm.meta["study"] = Study({**table, **OWN_RULES}, count["forward"], {})
    return gm


def mutates(gm: GraphModule) -> bool:
    """Does an op write to an operand? Batch norm writes its statistics, and does not say so."""
    ops = [n.target for n in gm.graph.nodes if isinstance(n.target, OpOverload)]
    return any(op._schema.is_mutable or op is BATCH_NORM for op in ops)


def is_random(gm: GraphModule) -> bool:
    """Does the graph draw random numbers?"""
    return any(
        torch.Tag.nondeterministic_seeded in n.target.tags
        for n in gm.graph.nodes
        if isinstance(n.target, OpOverload) and n.users
    )


def described(gm: GraphModule, program: Program, forward: int) -> None:
    """Say what inputs and outputs are, in AOTAutograd's words."""
    own = gm.graph.find_nodes(op="placeholder")
    for i, node in enumerate(own):
        node.meta["desc"] = PlainAOTInput(i)
    first = len(own) - len(program.tensors)
    wanted = [i for i, w in enumerate(program.wanted) if w]
    for i in wanted:
        own[first + i].meta["desc"] = ParamAOTInput(f"p{i}")
    results: list[Any] = [PlainAOTOutput(i) for i in range(forward)]
    results += [GradAOTOutput(grad_of=ParamAOTInput(f"p{i}")) for i in wanted]
    gm.graph.output_node().meta["desc"] = results


def check_guards(gm: GraphModule) -> None:
    """Refuse a graph that holds for some N only, as `prove` does.

    Raises:
        NotCapturedError: torch asked something about N that is not true of all N from 2 up.
    """
    mask = mark(gm).mask.meta["val"]
    env, own = names_of(mask)
    if not isinstance(own, sympy.Symbol):
        raise NotCapturedError("the number of samples is fixed")
    for guard in env.guards:
        asked = question(guard, env, own)
        if asked is not None and not always(asked, env):
            raise NotCapturedError(f"what is computed depends on whether {asked}")


def claims(gm: GraphModule) -> list[Claim | None]:
    """Prove and localize a graph: a claim for each output, None for what is no tensor.

    The graph that is left computes what has a placement, and nothing else.

    Raises:
        NotCapturedError: the graph holds for some N only.
    """
    tidy(gm)
    check_guards(gm)
    here = study(gm)
    release = mark(gm)
    n = batch_symbol(release.mask.meta["val"])
    here.put(Joint(gm, release))
    here.put(Samples(n))
    ends = outputs(gm)
    forward = needed_for([end for end in ends[: here.outputs] if isinstance(end, Node)])
    faults: dict[Node, str] = {}
    for node in gm.graph.nodes:
        spoilt = next((i for i in node.all_input_nodes if i in faults), None)
        if node.op == "output":
            continue
        if spoilt is not None:
            faults[node] = faults[spoilt]
            continue
        try:
            node.meta["placement"] = place(node, n, here.table, node not in forward)
        except Mixed as refusal:
            faults[node] = f"{node.target}: {refusal.why}"
    found = [claim_of(end, faults) for end in ends]
    kept = [None if isinstance(c, Refused) else end for end, c in zip(ends, found, strict=True)]
    gm.graph.output_node().args = (kept,)
    gm.graph.eliminate_dead_code()
    try:
        if any(is_total(node) or reads_count(gm, node) for node in gm.graph.nodes):
            localize(gm)
    except ProofError as error:
        why = Refused(f"localize: {error.diagnostics[0].why}")
        return [why if isinstance(c, Placement) else c for c in found]
    gm.graph.lint()
    safe_views(gm)
    return found


def reads_count(gm: GraphModule, node: Node) -> bool:
    """Does a node that holds samples read their number, which is 1 for each of them?"""
    return holds_samples(node) and any(counts(gm, i) for i in node.all_input_nodes)


def claim_of(end: Any, faults: dict[Node, str]) -> Claim | None:
    if not isinstance(end, Node):
        return None
    return Refused(faults[end]) if end in faults else end.meta["placement"]
