"""The graph of a proof as the page draws it: nodes in columns, edges, and a place for each.

Numbers that are computed from sizes are left out, unless a fault passes through them: they
would be a tenth of the nodes, and all of them read the same two inputs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from fxdp.graph.ends import gradients, mutations
from fxdp.graph.origin import ROOT, STEP, nearest, spelled
from fxdp.graph.study import GradientSums, Joint, Samples, Study
from fxdp.graph.sums import is_sum
from fxdp.lint.formats.html_layout import Outline, spots
from fxdp.lint.formats.html_parts import identity
from fxdp.lint.result import Finding, Result
from fxdp.placement import (
    Iota,
    Owner,
    Partial,
    Placement,
    Pointer,
    Replicate,
    Segment,
    Shard,
    Starts,
)
from fxdp.proof.faults import forward_outputs, is_backward, kept_outputs
from fxdp.shapes import Shape, shape_of, show

DTYPES = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


@dataclass
class Names:
    """Texts that many nodes share, each once."""

    texts: list[str] = field(default_factory=lambda: [])
    index: dict[str, int] = field(default_factory=lambda: {})

    def __call__(self, text: str) -> int:
        if text not in self.index:
            self.index[text] = len(self.texts)
            self.texts.append(text)
        return self.index[text]


@dataclass(frozen=True)
class End:
    """Something that leaves the graph, drawn as a node of its own behind the last op."""

    source: Node
    label: str


def drawing(result: Result, study: Study, gm: GraphModule, files: Names) -> dict[str, Any]:
    """The columns of the nodes; the page reads them by these keys."""
    routed = {name for f in result.findings for name in f.route}
    nodes = [n for n in gm.graph.nodes if n.op != "output" and (n.name in routed or drawn(n))]
    index = {n: i for i, n in enumerate(nodes)}
    ends = [e for e in ends_of(gm) if e.source in index]
    number = {(e.source.name, e.label): len(nodes) + i for i, e in enumerate(ends)}
    edges = [(index[a], i) for i, n in enumerate(nodes) for a in n.all_input_nodes if a in index]
    edges += [(index[e.source], len(nodes) + i) for i, e in enumerate(ends)]
    texts, aliases = Names(), inputs_of(study)
    refused = refused_nodes(nodes, result.findings)
    spoilt = reached(refused, edges, index)
    explained, samples = study.found(GradientSums), study.found(Samples)
    summed = {s: g.parameter for g in explained.all for s in g.sums} if explained else {}
    symbol = samples.n if samples else None
    behind = [is_backward(n) for n in nodes] + [e.label.startswith("gradient") for e in ends]
    light = [kind(n) == "replicate" for n in nodes] + [False] * len(ends)
    where = spots(Outline(edges, behind, light))
    places = [nearest(n) for n in nodes]
    return {
        "name": [n.name for n in nodes] + [e.label for e in ends],
        "label": [aliases.get(n.name, n.name) for n in nodes] + [e.label for e in ends],
        "op": [texts("input" if n.op == "placeholder" else spelled(n)) for n in nodes]
        + [texts("output")] * len(ends),
        "kind": ["refused" if n in refused else kind(n) for n in nodes] + ["end"] * len(ends),
        "spoilt": [i for i in range(len(nodes)) if i in spoilt],
        "sum": {
            i: summed.get(n, "")
            for i, n in enumerate(nodes)
            if n in summed or (not summed and adds_up(n))
        },
        "placement": [texts(placed(n)) for n in nodes] + [texts("")] * len(ends),
        "shape": [texts(shapes(n, symbol)) for n in nodes] + [texts("")] * len(ends),
        "module": [texts(module_of(n)) for n in nodes] + [texts(module_of(e.source)) for e in ends],
        "file": [files(identity(at.file)) if at else -1 for at in places] + [-1] * len(ends),
        "line": [at.line if at else 0 for at in places] + [0] * len(ends),
        "backward": [int(b) for b in behind],
        "x": [s.x for s in where],
        "y": [s.y for s in where],
        "edges": [i for edge in edges for i in edge],
        "texts": texts.texts,
        "routes": [route(f, index, number) for f in result.findings],
        "left_out": sum(n.op != "output" for n in gm.graph.nodes) - len(nodes),
    }


def drawn(node: Node) -> bool:
    """Does a node hold a tensor, or several?"""
    value = node.meta.get("val")
    return any(isinstance(v, torch.Tensor) for v in leaves(value))


def leaves(value: Any) -> Iterable[Any]:
    """The results of a node, of which most have one."""
    return value if isinstance(value, tuple | list) else (value,)


def ends_of(gm: GraphModule) -> list[End]:
    """What leaves the graph, in the words of the routes."""
    ends = [End(node, f"gradient of {name}") for name, node in gradients(gm).items()]
    ends += [End(node, f"new value of {name}") for name, node in mutations(gm).items()]
    kept = kept_outputs(gm)
    ends += [End(node, "value kept by the model") for node in kept]
    known = {e.source for e in ends}
    ends += [End(node, "output") for node in forward_outputs(gm) if node not in known]
    return list(dict.fromkeys(ends))


def inputs_of(study: Study) -> dict[str, str]:
    """The inputs by the names that a person knows them by."""
    known = dict(study.names)
    if (joint := study.found(Joint)) is not None:
        mark = joint.mark
        words = {"clip bound": mark.bound, "noise multiplier": mark.sigma}
        words |= {"expected batch size": mark.expected, "sample mask": mark.mask}
        words |= {"key of the noise": mark.key}
        words |= {"the loss": mark.node}
        known |= {node.name: word for word, node in words.items()}
    return {k: v.replace("leaves.", "input ") for k, v in known.items()}


def kind(node: Node) -> str:
    """The placement in a word; of several results, that of the first that has one."""
    match next((p for p in leaves(node.meta.get("placement")) if p is not None), None):
        case Replicate():
            return "replicate"
        case Shard():
            return "shard"
        case Partial():
            return "partial"
        case Iota():
            return "iota"
        case _:
            return "none"


def adds_up(node: Node) -> bool:
    """Is this a sum over samples that no gradient is known to be made of?"""
    one = not isinstance(node.meta.get("placement"), tuple)
    return one and is_backward(node) and is_sum(node)


def placed(node: Node) -> str:
    """The placement as text: "Shard(0)", "Shard(1, inner=T)"."""
    at = node.meta.get("placement")
    return "; ".join(dict.fromkeys(spell(p) for p in leaves(at) if p is not None)) or "not placed"


def spell(at: Placement) -> str:
    """One placement, with what is as usual left out."""
    match at:
        case Shard(dim, inner) | Iota(dim, inner):
            return f"{type(at).__name__}({dim}{'' if inner == 1 else f', inner={inner}'})"
        case Partial(public):
            return "Partial + public" if public else "Partial"
        case Replicate():
            return "Replicate"
        case Segment(dim) | Owner(dim) | Pointer(dim):
            return f"{type(at).__name__}({dim})"
        case Starts():
            return "Starts"


def shapes(node: Node, n: sympy.Symbol | None) -> str:
    """The results of a node as "f32[N, 8]"."""
    return " ".join(shape(v, n) for v in leaves(node.meta.get("val")))


def shape(value: Any, n: sympy.Symbol | None) -> str:
    """One result."""
    if not isinstance(value, torch.Tensor):
        return "" if value is None else "number"
    word = str(value.dtype).removeprefix("torch.")
    letters = word.rstrip("0123456789")
    sizes = shown(shape_of(value.shape), n if n is not None else sympy.Symbol("N"))
    return DTYPES.get(letters, letters) + word[len(letters) :] + sizes


@lru_cache(maxsize=1024)
def shown(sizes: Shape, n: sympy.Symbol) -> str:
    """A shape as text; a graph has thousands of nodes and a few dozen shapes."""
    return show(sizes, n)


def module_of(node: Node) -> str:
    """The submodule that a node ran in, or whose backward pass it belongs to."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    path = [path for path, _ in stack.values()][-1:]
    steps = [a or b for p in path for a, b in STEP.findall(ROOT.sub("", p))]
    return ".".join(s for s in steps if s != "_modules")


def refused_nodes(nodes: list[Node], findings: Iterable[Finding]) -> set[Node]:
    """The nodes where routes begin, and those of the same line in the other modules."""
    by_name = {n.name: n for n in nodes}
    found: set[Node] = set()
    for finding in findings:
        start = by_name.get(finding.route[0]) if finding.route else None
        if start is not None:
            found |= {start, *(n for n in nodes if same_fault(n, start, finding.modules))}
    return found


def same_fault(node: Node, start: Node, modules: tuple[str, ...]) -> bool:
    """Is this the op at which another of the modules has the fault?"""
    trace = node.meta.get("stack_trace")
    return (
        node.target == start.target
        and bool(trace)
        and trace == start.meta.get("stack_trace")
        and is_backward(node) == is_backward(start)
        and module_of(node) in modules
    )


def reached(
    starts: set[Node], edges: Iterable[tuple[int, int]], index: dict[Node, int]
) -> set[int]:
    """What is computed from some nodes; edges go up, so one look at each is enough."""
    found = {index[n] for n in starts}
    for a, b in sorted(edges, key=lambda e: e[1]):
        if a in found:
            found.add(b)
    return found


def route(finding: Finding, index: dict[Node, int], ends: dict[tuple[str, str], int]) -> list[int]:
    """A finding's route as numbers of nodes; -1 where the graph has no such node."""
    by_name = {n.name: i for n, i in index.items()}
    steps = [by_name.get(name, -1) for name in finding.route]
    if len(finding.route) > 1:
        steps[-1] = ends.get((finding.route[-2], finding.route[-1]), steps[-1])
    return steps
