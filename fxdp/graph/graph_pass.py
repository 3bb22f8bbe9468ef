"""What a pass is, and how a pipeline of them is run.

A pass is a function from a graph to a graph. It says which facts it needs to be true of the
graph it gets and which it makes true of the graph it returns; the runner checks both, the
second kind on the result. What passes learn about a graph and its nodes travels with it: in
`node.meta["placement"]`, and in the `Study` under `gm.meta["study"]`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy
from torch.fx import Graph, GraphModule, Node

from fxdp.autotune.trials import Trial
from fxdp.forms.batch import Strategy
from fxdp.graph import marks
from fxdp.graph.memory import Peak
from fxdp.placement import Placement
from fxdp.rules import Table
from fxdp.shapes import expr
from fxdp.status import say
from fxdp.torch_internals import value_at_capture

NO_SOURCE = object()
Fact = Callable[[GraphModule], str | None]


@dataclass(frozen=True)
class Mark:
    """Where the loss leaves the model, and the inputs that the release depends on.

    Attributes:
        node: the mark itself.
        loss: 0-d or [N].
        bound, sigma, expected: clip bound, noise multiplier and public batch size, 0-d.
        key: int64 [2], which decides the noise.
        mask: [N] bool, False for padding.
        reduction: "mean" or "sum" where the mark is on a model's output, of which the user makes
            a loss; "" where it is on a loss.
    """

    node: Node
    loss: Node
    bound: Node
    sigma: Node
    expected: Node
    key: Node
    mask: Node
    reduction: str = ""


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
        keep: whether per-sample gradients, where there are any, stay until the clipped sum is
            made of them; else they go once they are measured.
        trials: what was found out by trying, where the costs did not decide.
    """

    gradient: Gradient
    kind: Literal["one", "joined", "tied", "general"]
    strategy: Strategy
    costs: Mapping[Strategy, sympy.Expr]
    keep: bool = True
    trials: tuple[Trial, ...] = ()


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


@dataclass(frozen=True)
class Seen:
    """What a proof saw of a graph, for the certificate.

    Attributes:
        fingerprint: the graph's hash.
        places: how many values have which kind of placement.
        ops: the ops that occur.
        totals: how many 0-d totals over the batch there are.
        written: how many inputs the program writes to.
    """

    fingerprint: str
    places: dict[str, int]
    ops: frozenset[Any]
    totals: int
    written: int


@dataclass
class Study:
    """What is known of a graph so far.

    Attributes:
        table: the rules.
        outputs: how many of the graph's outputs belong to the forward pass.
        names: of the inputs, by placeholder name, as the user knows them.
        parameters: placeholders that get a gradient.
        n: the symbol of the number of samples (from `prove`).
        size: a node with the number of samples (from `prove`).
        mark: where the loss is (from `prove`).
        shown: placements of what the caller sees beside the loss, in order (from `prove`).
        gradients: from `explain`.
        choices: from `plan`.
        each: per-sample gradients [N, ...] that exist as nodes, by parameter (from `measure`).
        factors: nodes [N] with clip factors, by parameter (from `measure`).
        norms: the node [N] with the norms over all parameters (from `measure`).
        finite: the node bool [N] that tells whose loss and gradient are finite.
        clipped: from `clip`.
        readable: the graph before `lower`, for people.
        history: the names of the passes that ran.
        joint: the graph that the proof places, also where it fails (from `prove`).
        seen: what the certificate says of the placed graph (from `prove`).
        notes: what the user's lines allow, for the certificate.
        peak: how much memory a step takes, once the graph was split.
        contiguous: whether Inductor is to leave pictures in the layout they come in.
    """

    table: Table
    outputs: int
    names: dict[str, str]
    n: sympy.Symbol | None = None
    mark: Mark | None = None
    size: Node | None = None
    shown: tuple[Any, ...] = ()
    gradients: tuple[Gradient, ...] = ()
    choices: tuple[Choice, ...] = ()
    each: dict[str, Node] = field(default_factory=lambda: {})
    clipped: tuple[Clipped, ...] = ()
    factors: dict[str, Node] = field(default_factory=lambda: {})
    norms: Node | None = None
    finite: Node | None = None
    readable: GraphModule | None = None
    joint: GraphModule | None = None
    seen: "Seen | None" = None
    history: list[str] = field(default_factory=lambda: [])
    notes: list[str] = field(default_factory=lambda: [])
    peak: Peak | None = None
    contiguous: bool = False


@dataclass(frozen=True)
class Pass:
    """A step of the pipeline: a function, and the facts around it.

    Attributes:
        run: the graph to be changed comes first, and what other arguments it has are options.
        needs, gives: what must be true of the graph before, and is true of it after.
        ends: it leaves the pipeline, which may have been told more than was done until there.
    """

    run: Callable[..., GraphModule]
    needs: tuple[Fact, ...] = ()
    gives: tuple[Fact, ...] = ()
    ends: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def options(self) -> tuple[str, ...]:
        """What a pass may be told beside the graph."""
        return tuple(inspect.signature(self.run).parameters)[1:]


def study(gm: GraphModule) -> Study:
    """What is known of a graph."""
    return gm.meta["study"]


def hinted(gm: GraphModule, cost: sympy.Expr) -> float:
    """A cost in numbers, for the sizes that the model was captured with."""
    size = study(gm).size
    assert size is not None
    env = size.meta["val"].node.shape_env
    return float(value_at_capture(env)(cost))


def at_hand(gm: GraphModule) -> Callable[[Any], int]:
    """What a symbolic size is, for the sizes that the model was captured with."""
    return lambda size: int(hinted(gm, expr(size)))


def arguments(node: Node) -> tuple[Any, ...]:
    """A node's arguments; fx's own type for them allows next to nothing."""
    return node.args


def mark(gm: GraphModule) -> Mark:
    """The one place where the loss leaves the model.

    Raises:
        AssertionError: a graph without such a place, or with several.
    """
    found = gm.graph.find_nodes(op="call_function", target=marks.release.default)
    if len(found) != 1:
        raise AssertionError(f"one release is expected in a graph, and there are {len(found)}")
    return Mark(found[0], *arguments(found[0]))


def outputs(gm: GraphModule) -> list[Any]:
    """What a graph returns: forward results, then gradients and what else there is."""
    return list(arguments(gm.graph.output_node())[0])


def copied(gm: GraphModule) -> GraphModule:
    """A graph of its own over the same tensors, for one that others may change or go on using."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    graph.output(graph.graph_copy(gm.graph, copies))
    for node, copy in copies.items():
        # Where Dynamo found an input, which it does not keep in the node's meta.
        if (source := getattr(node, "_dynamo_source", NO_SOURCE)) is not NO_SOURCE:
            setattr(copy, "_dynamo_source", source)  # noqa: B010
    graph.output_node().meta = dict(gm.graph.output_node().meta)
    new = GraphModule(gm, graph)
    new.meta = dict(gm.meta)
    return new


def placement(node: Node) -> Placement | None:
    """The placement of a node's value; None for what is no tensor."""
    return node.meta.get("placement")


def run(gm: GraphModule, passes: tuple[Pass, ...], **options: Any) -> GraphModule:
    """Run the passes in order; each gets the options that its signature names.

    Raises:
        TypeError: an option that no pass takes, or one that a pass needs and is not given.
        AssertionError: a fact does not hold where a pass needs or promises it.
    """
    refuse_unknown(passes, options)
    for step in passes:
        say(f"{step.name} ({len(gm.graph.nodes)} ops)")
        _check(gm, step.needs, f"{step.name} needs")
        gm = step.run(gm, **{k: v for k, v in options.items() if k in step.options})
        gm.graph.lint()
        gm.recompile()
        _check(gm, step.gives, f"{step.name} gives")
        study(gm).history.append(step.name)
    return gm


def refuse_unknown(passes: tuple[Pass, ...], options: Mapping[str, Any]) -> None:
    """Refuse options that nobody takes: what they ask for would not be done, and nobody told.

    Raises:
        TypeError: there are some.
    """
    known = {name for step in passes for name in step.options}
    if not any(step.ends for step in passes) and (unknown := set(options) - known):
        names = ", ".join(step.name for step in passes)
        raise TypeError(
            f"no pass takes {', '.join(sorted(unknown))}: {names} take {', '.join(sorted(known))}"
        )


def _check(gm: GraphModule, facts: tuple[Fact, ...], who: str) -> None:
    for fact in facts:
        if (trouble := fact(gm)) is not None:
            raise AssertionError(f"{who} {fact.__name__}: {trouble}")


def places_of(gm: GraphModule, kind: str) -> list[tuple[str, int]]:
    """Name and place of the outputs whose AOTAutograd descriptor is of a kind.

    The name is that of the input which the output is the gradient or the new value of.
    """
    descriptors = gm.graph.output_node().meta["desc"]
    inputs: dict[Any, str] = {
        n.meta["desc"]: n.name for n in gm.graph.find_nodes(op="placeholder") if "desc" in n.meta
    }
    known: dict[str, str] = study(gm).names
    found: list[tuple[str, int]] = []
    taken: set[str] = set()
    for place, (node, desc) in enumerate(zip(outputs(gm), descriptors, strict=True)):
        if isinstance(node, Node) and type(desc).__name__ == kind:
            of = getattr(desc, "grad_of", None) or getattr(desc, "mutated_input", None)
            placeholder: str = inputs.get(of, f"output_{place}")
            name: str = known.get(placeholder, placeholder)
            name = f"{name} ({placeholder})" if name in taken else name
            taken.add(name)
            found.append((name, place))
    return found


def gradient_places(gm: GraphModule) -> list[tuple[str, int]]:
    """Where the gradients are among a joint graph's outputs, with the names of the inputs."""
    return places_of(gm, "GradAOTOutput")


def gradients(gm: GraphModule) -> dict[str, Node]:
    """The gradients among a joint graph's outputs, by the name of the input."""
    return {name: outputs(gm)[place] for name, place in gradient_places(gm)}


def mutations(gm: GraphModule) -> dict[str, Node]:
    """The new values of inputs that the program writes to, by the name of the input."""
    return {name: outputs(gm)[p] for name, p in places_of(gm, "InputMutationAOTOutput")}
