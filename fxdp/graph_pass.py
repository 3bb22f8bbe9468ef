"""What a pass is, and how a pipeline of them is run.

A pass is a function from a graph to a graph. It says which facts it needs to be true of the
graph it gets and which it makes true of the graph it returns; the runner checks both, the
second kind on the result. What passes learn about a graph and its nodes travels with it: in
`node.meta["placement"]`, and in the `Study` under `gm.meta["study"]`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy
from torch.fx import GraphModule, Node

from fxdp.forms.batch import Strategy
from fxdp.placement import Placement
from fxdp.rules import Table

Fact = Callable[[GraphModule], str | None]


@dataclass(frozen=True)
class Gradient:
    """How the gradient of one parameter is made of sums over samples.

    Attributes:
        parameter: its name.
        node: the gradient, an output of the graph.
        sums: the nodes that sum over samples, in the order of the graph.
        linear: the nodes between those and the gradient, linear in them.
    """

    parameter: str
    node: Node
    sums: tuple[Node, ...]
    linear: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """How the per-sample norms of one parameter's gradient are found.

    Attributes:
        gradient: which gradient.
        kind: what the sums are together: one form, several of one kind that are joined, an
            embedding tied to a head, or a general linear image of per-sample gradients.
        strategy: how the norms are found.
        costs: predicted cost of each strategy that is possible, for the report.
    """

    gradient: Gradient
    kind: Literal["one", "joined", "tied", "general"]
    strategy: Strategy
    costs: dict[str, sympy.Expr]


@dataclass(frozen=True)
class Clipped:
    """A gradient with every sample clipped.

    Attributes:
        gradient: which gradient it replaces.
        total: the node with the clipped sum.
        public: the node with the terms that hold no samples; None if there are none.
    """

    gradient: Gradient
    total: Node | None
    public: Node | None


@dataclass
class Study:
    """What is known of a graph so far.

    Attributes:
        table: the rules.
        outputs: how many of the graph's outputs belong to the forward pass.
        names: of the inputs, by placeholder name, as the user knows them.
        parameters: placeholders that get a gradient.
        n: the symbol of the number of samples (from `prove`).
        sigma: the name of the input with the noise multiplier (from `prove`).
        size: a node with the number of samples (from `prove`).
        mark: the release node (from `prove`).
        gradients: from `explain`.
        choices: from `plan`.
        each: per-sample gradients [N, ...] that exist as nodes, by parameter (from `measure`).
        factor, norms: nodes [N] with clip factors and norms (from `measure`).
        clipped: from `clip`.
        readable: the graph before `lower`, for people.
        history: the printed graph after each pass.
        notes: assumptions met on the way, for the certificate.
    """

    table: Table
    outputs: int
    names: dict[str, str]
    n: sympy.Symbol | None = None
    mark: Node | None = None
    sigma: str = ""
    size: Node | None = None
    gradients: tuple[Gradient, ...] = ()
    choices: tuple[Choice, ...] = ()
    each: dict[str, Node] = field(default_factory=lambda: {})
    clipped: tuple[Clipped, ...] = ()
    factor: Node | None = None
    norms: Node | None = None
    readable: GraphModule | None = None
    history: dict[str, str] = field(default_factory=lambda: {})
    notes: list[str] = field(default_factory=lambda: [])


@dataclass(frozen=True)
class Pass:
    """A step of the pipeline: a function, and the facts around it."""

    run: Callable[..., GraphModule]
    needs: tuple[Fact, ...] = ()
    gives: tuple[Fact, ...] = ()

    @property
    def name(self) -> str:
        return self.run.__name__


def study(gm: GraphModule) -> Study:
    """What is known of a graph."""
    return gm.meta["study"]


def placement(node: Node) -> Placement | None:
    """The placement of a node's value; None for what is no tensor."""
    return node.meta.get("placement")


def run(gm: GraphModule, passes: tuple[Pass, ...], **options: Any) -> GraphModule:
    """Run the passes in order; each gets the options that its signature names.

    Raises:
        AssertionError: a fact does not hold where a pass needs or promises it.
    """
    for step in passes:
        _check(gm, step.needs, f"{step.name} needs")
        named = inspect.signature(step.run).parameters
        gm = step.run(gm, **{k: v for k, v in options.items() if k in named})
        gm.graph.lint()
        gm.recompile()
        _check(gm, step.gives, f"{step.name} gives")
        study(gm).history[step.name] = gm.print_readable(print_output=False)
    return gm


def _check(gm: GraphModule, facts: tuple[Fact, ...], who: str) -> None:
    for fact in facts:
        if (trouble := fact(gm)) is not None:
            raise AssertionError(f"{who} {fact.__name__}: {trouble}")


def outputs_described(gm: GraphModule, kind: str) -> dict[str, Node]:
    """The outputs whose AOTAutograd descriptor is of a kind, by the name of what they are of."""
    output = gm.graph.output_node()
    inputs = {n.meta["desc"]: n.name for n in gm.graph.find_nodes(op="placeholder") if "desc" in n.meta}
    names = study(gm).names
    found: dict[str, Node] = {}
    for node, desc in zip(output.args[0], output.meta["desc"], strict=True):
        if isinstance(node, Node) and type(desc).__name__ == kind:
            of = getattr(desc, "grad_of", None) or getattr(desc, "mutated_input", None)
            placeholder = inputs.get(of, "")
            found[names.get(placeholder, placeholder)] = node
    return found


def gradients(gm: GraphModule) -> dict[str, Node]:
    """The gradients among a joint graph's outputs, by the name of the input."""
    return outputs_described(gm, "GradAOTOutput")


def mutations(gm: GraphModule) -> dict[str, Node]:
    """The new values of inputs that the program writes to, by the name of the input."""
    return outputs_described(gm, "InputMutationAOTOutput")
