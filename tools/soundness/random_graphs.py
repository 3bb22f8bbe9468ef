"""Random programs through the passes of the proof, and of clipping.

Each program gets fxdp's marks and the passes tidy, prove, localize and explain. What is accepted
must agree with plain runs on each sample alone: the losses, the placements of values in between,
and every parameter's gradient for each sample. Then one sample is replaced, and no other
sample's gradient may move. After the passes from plan to clip, the norms must be those of the
samples' gradients, and the clipped sums theirs with each cut to the bound. What is refused is
looked at by brute force: do samples really mix?
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxdp.backend.halves import safe_views
from fxdp.diagnostics.diagnostic import ProofError
from fxdp.graph.nodes import outputs
from fxdp.graph.records import Gradient
from fxdp.graph.study import ClippedSums, Factors, GradientSums, Joint, Seen, study
from fxdp.graph.sums import image, is_total, sum_at
from fxdp.mechanism.clipping import Flat
from fxdp.mechanism.streaming import Streams
from fxdp.ops import RULES
from fxdp.passes.clip import clip
from fxdp.passes.explain import explain
from fxdp.passes.localize import localize
from fxdp.passes.measure import measure
from fxdp.passes.plan import plan
from fxdp.passes.prove import prove
from fxdp.passes.share import share
from fxdp.passes.stream import stream
from fxdp.passes.tidy import tidy
from fxdp.passes.weigh import weigh
from fxdp.placement import Partial, Shard
from fxdp.proof.facts import batch_symbolic
from fxdp.rules import Table
from tools.soundness.local_runs import Whole, alone, held, run_whole, same, size_of, trouble
from tools.soundness.menu import Made, make
from tools.soundness.programs import NotCapturedError, Program, captured

STRATEGIES = ("auto", "ghost", "instantiate", "stream")
weigh_flat = partial(weigh, clipping=Flat())


@dataclass
class Tally:
    """What became of the programs.

    Attributes:
        accepted: programs that were proven, and `checked` the values compared in them.
        untried: batches of accepted programs of which one sample alone is no valid input.
        mixing: refused programs of which a value has no placement at all.
        missing: programs that could not be captured for every N, by reason.
        refused: the others, by the code of the first fault.
        crashed: programs on which a pass fell over, which is neither yes nor no.
        false: accepted, and wrong: seed, what differs, and the source.
    """

    accepted: int = 0
    checked: int = 0
    untried: Counter[str] = field(default_factory=Counter)
    mixing: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    crashed: list[str] = field(default_factory=lambda: [])
    false: list[str] = field(default_factory=lambda: [])

    def summary(self) -> str:
        refused, missing = sum(self.refused.values()), sum(self.missing.values())
        total = max(self.accepted + refused + missing + len(self.crashed), 1)
        lines = [f"  {n:5d}  refused: {why}" for why, n in self.refused.most_common(20)]
        lines += [f"  {n:5d}  not captured: {why}" for why, n in self.missing.most_common(8)]
        lines += [f"  {n:5d}  batches not tried: {why}" for why, n in self.untried.most_common(8)]
        lines.append(
            f"{total} random programs: {self.accepted} accepted ({self.accepted / total:.0%}), "
            f"{refused} refused, {missing} not captured for every N; "
            f"{self.mixing} truly mix samples ({self.mixing / total:.0%}); "
            f"{len(self.crashed)} crashed; {self.checked} values checked, "
            f"{len(self.false)} FALSE accepts"
        )
        return "\n".join(lines)


def compiled(source: str) -> Callable[..., list[Tensor]]:
    """The function that a source defines."""
    names: dict[str, Any] = {"torch": torch, "F": F}
    exec(source, names)
    return names["program"]


def data(made: Made, world: int) -> list[Tensor]:
    """The arguments of one of the batches."""
    return [made.worlds[world][name].detach() for name in made.names]


def check(seed: int, tally: Tally, table: Table = RULES) -> None:
    """Make a program, ask fxdp, and hold the answer against brute force."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make(seed)
        source = made.source(made.dice.sample(made.live[1:], min(2, len(made.live) - 1)))
        wanted = [d is None for d in made.dims]
        program = Program(compiled(source), data(made, 0), made.dims, wanted, losses=True)
        try:
            gm = proven(program, table)
        except NotCapturedError as error:
            tally.missing[str(error)[:60]] += 1
            tally.mixing += mixes(made)
            return
        except ProofError as error:
            first = error.diagnostics[0]
            tally.refused[f"{first.code.code} {first.why[:70]}"] += 1
            tally.mixing += mixes(made)
            return
        except Exception as error:  # fail closed is right, but this is no refusal
            tally.crashed.append(f"seed {seed}: {type(error).__name__}: {error}\n{source}")
            return
        tally.accepted += 1
        for world in (0, 1):
            try:
                found = troubles(gm, program, data(made, world), tally)
            except Exception as error:  # accepted for every N, and this N cannot run
                found = f"{type(error).__name__}: {error}"
            if found:
                tally.false.append(f"seed {seed}, N={made.sizes[world]}: {found}\n{source}")
                return
        strategy = made.dice.choice(STRATEGIES)
        try:
            found = clipping_trouble(gm, program, data(made, 0), strategy, tally)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        if found:
            tally.false.append(f"seed {seed}, clipped by {strategy}: {found}\n{source}")


def proven(program: Program, table: Table) -> GraphModule:
    """The graph after the passes of the proof.

    Raises:
        NotCapturedError: torch cannot trace the program.
        ProofError: fxdp refuses it.
    """
    gm = captured(program, table)
    with torch.backends.opt_einsum.flags(enabled=False):  # as in a capture
        for step in (tidy, prove, localize, explain):
            gm = step(gm)
    gm.graph.lint()
    if (fixed := batch_symbolic(gm)) is not None:  # which the pipeline looks at, too
        raise NotCapturedError(fixed)
    return safe_views(gm)


def clipping_trouble(
    gm: GraphModule, program: Program, tensors: list[Tensor], strategy: Any, tally: Tally
) -> str:
    """What is wrong about the norms and the clipped sums of an accepted program; nothing if all is
    well. The bound is 1."""
    here = study(gm)
    loss = here.of(Joint).mark.loss.meta["val"]
    with torch.backends.opt_einsum.flags(enabled=False), loss.fake_mode:
        streams = Streams()
        streamed = partial(stream, clipping=Flat(), streams=streams)
        for step in (partial(plan, strategy=strategy), measure, streamed, weigh_flat, share, clip):
            gm = step(gm)
    gm.recompile()
    n = size_of(tensors, program.dims)
    run = run_whole(safe_views(gm), program, tensors)
    try:
        plain = [local_gradients(program, tensors, i)[1] for i in range(n)]
    except (RuntimeError, IndexError, ValueError):
        return ""  # counted among the batches that were not tried
    order = {g: parameter_index(gm, program, g) for g in here.of(GradientSums).all}
    own = [c for c in here.of(ClippedSums).all if c.total is not None]
    # What holds no samples is in a local gradient too, and is not clipped.
    rest = {c: run.env[c.public] if c.public is not None else 0.0 for c in own}
    rows = {c: torch.stack([g[order[c.gradient]] - rest[c] for g in plain]) for c in own}
    if not rows:
        return ""
    squares = [x.square().reshape(n, -1).sum(1) for x in rows.values()]
    norms = torch.stack(squares).sum(0).sqrt()
    tally.checked += n
    if not same(run.env[here.of(Factors).norms].double(), norms):
        return "the norms are not those of the gradients"
    # A sample whose gradient is not finite adds nothing.
    factor = (1 / norms).clamp(max=1).masked_fill(~norms.isfinite(), 0)
    for c, x in rows.items():
        want = torch.einsum("n,n...->...", factor, x.nan_to_num(0, 0, 0))
        if not same(run.env[c.total], want.expand_as(run.env[c.total])):
            return f"the clipped sum of {c.gradient.parameter} is not that of its samples"
    return ""


def mixes(made: Made) -> bool:
    """Has a value of the program no placement, by brute force?"""
    program = compiled(made.source(made.live[1:]))
    batch = data(made, 0)
    whole = program(*batch)
    try:
        each = [program(*alone(batch, made.dims, i)) for i in range(made.sizes[0])]
    except (RuntimeError, IndexError, ValueError):
        return True  # what one sample cannot do alone needs the others
    # Totals (means, ratios) are read sample by sample, not added up: see `localize`.
    results = zip(whole, zip(*each, strict=True), strict=True)
    return any(held(value, locals_) is None for value, locals_ in results if value.dim())


def local_gradients(
    program: Program, tensors: Sequence[Tensor], i: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and gradients of the loss, of one sample alone."""
    own = alone(tensors, program.dims, i)
    leaves = [
        x.detach().requires_grad_(w) for x, w in zip(own, program.wanted, strict=True)
    ]  # fmt: skip
    outs = program.function(*leaves)
    wanted = [x for x in leaves if x.requires_grad]
    grads = torch.autograd.grad(outs[0].sum(), wanted, allow_unused=True)
    zeros = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True)]
    return [o.detach() for o in outs], zeros


def per_sample(gm: GraphModule, run: Whole, gradient: Gradient, n: int) -> list[Tensor]:
    """What fxdp takes for each sample's gradient: from the forms of the sums it is made of."""
    shares: dict[Node, Tensor] = {}
    for node in gradient.sums:
        taken = sum_at(gm, node)
        assert taken is not None
        inputs = pytree.tree_map_only(Node, lambda a: run.env[a], taken.inputs)
        shares[node] = taken.build(*inputs).per_sample()

    def apply(node: Node, args: Any, kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map_only(Node, lambda a: run.env[a], (args, kwargs))
        return node.target(*args, **kwargs)  # type: ignore[operator]

    found: list[Tensor] = []
    for i in range(n):
        own = image(gm, gradient, {k: v[i] for k, v in shares.items()}, apply, public=True)
        own = run.env[own] if isinstance(own, Node) else own
        found.append(torch.zeros_like(run.env[gradient.node]) if own is None else own)
    return found


def troubles(gm: GraphModule, program: Program, tensors: list[Tensor], tally: Tally) -> str:
    """What is wrong about an accepted program, on one batch; nothing if all is well."""
    here, n = study(gm), size_of(tensors, program.dims)
    run = run_whole(gm, program, tensors)
    try:
        plain = [local_gradients(program, tensors, i) for i in range(n)]
    except (RuntimeError, IndexError, ValueError) as error:
        # `F.group_norm` refuses a batch of 1 where a group has one element.
        tally.untried[str(error)[:70]] += 1
        return ""
    loss = here.of(Joint).mark.loss
    own = run.env[loss.meta["twin"] if is_total(loss) else loss]
    if not same(own, torch.stack([outs[0].sum() for outs, _ in plain])):
        return f"the local losses are {own.tolist()}"
    for k, at in enumerate(here.of(Seen).shown):
        node = outputs(gm)[1 + k]
        if at is None or (isinstance(at, Partial) and at.public):
            continue
        twin = node.args[0].meta.get("twin")
        value, at = (run.env[node], at) if twin is None else (run.env[twin], Shard(0))
        if why := trouble(at, value, [outs[1 + k] for outs, _ in plain]):
            return f"shown {k} claims {at}, but {why}"
    changed = run_whole(gm, program, neighbour(program, tensors))
    for gradient in here.of(GradientSums).all:
        k = parameter_index(gm, program, gradient)
        found = per_sample(gm, run, gradient, n)
        tally.checked += n
        for i, own in enumerate(found):
            if not same(own, plain[i][1][k]):
                return f"the gradient of parameter {k} for sample {i} is not its local one"
        moved = per_sample(gm, changed, gradient, n)
        if not all(same(a, b) for a, b in zip(found[1:], moved[1:], strict=True)):
            return f"the gradient of parameter {k} moves with another sample"
    return ""


def parameter_index(gm: GraphModule, program: Program, gradient: Gradient) -> int:
    """Which of the differentiated arguments a gradient belongs to."""
    nodes = [n.name for n in gm.graph.find_nodes(op="placeholder")][-len(program.tensors) :]
    wanted = [n for n, w in zip(nodes, program.wanted, strict=True) if w]
    return wanted.index(gradient.parameter)


def neighbour(program: Program, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same batch with another first sample."""
    found: list[Tensor] = []
    for x, d in zip(tensors, program.dims, strict=True):
        if d is None:
            found.append(x)
            continue
        x = x.clone()
        first = x.narrow(d, 0, 1)
        first.copy_(first * -1.7 + 0.3 if x.is_floating_point() else 1 - first)
        found.append(x)
    return found
