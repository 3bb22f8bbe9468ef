"""What is known of a joint graph: one record, under `gm.meta["study"]`, that the passes fill in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy
from torch.fx import GraphModule, Node

from fxdp.autotune.trials import Trial
from fxdp.forms.strategy import Strategy
from fxdp.graph.memory import Peak
from fxdp.rules import Table
from fxdp.shapes import expr
from fxdp.torch_internals import value_at_capture


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
        squares: nodes [N] with the squared norms of gradients, by parameter (from `measure`;
            `share` may put others in their place, so that they are for `weigh` alone).
        factors: nodes [N] with clip factors, by parameter (from `weigh`).
        norms: the node [N] with the norms over all parameters (from `weigh`).
        finite: the node bool [N] that tells whose loss and gradient are finite (from `weigh`).
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
    squares: dict[str, Node] = field(default_factory=lambda: {})
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
