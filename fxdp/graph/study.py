"""What is known of a joint graph: a `Study` under `gm.meta["study"]`, with a record for each stage.

A pass puts down what it found as a record, and later passes ask for it by its type. So a field is
never there and empty: what was not found yet is not there at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sympy
from torch.fx import GraphModule, Node

from fxdp.graph.memory import Peak
from fxdp.graph.records import Choice, Clipped, Gradient, Mark
from fxdp.rules import Table
from fxdp.shapes import expr
from fxdp.torch_internals import value_at_capture

# The records of the stages, in the order in which they are put down; last comes the `Peak` of
# memory, once the graph was cut.


@dataclass(frozen=True)
class Written:
    """One node of a captured graph, as text.

    Attributes:
        op: what it does.
        operands: with what: %3 is the result of node 3.
        results: dtypes and shapes.
    """

    op: str
    operands: str
    results: str


@dataclass(frozen=True)
class Program:
    """The captured graph, as it was before any pass (from `tidy`).

    Attributes:
        lines: its nodes.
        sizes: the names of torch's symbols in there; placements may add to them.
    """

    lines: tuple[Written, ...]
    sizes: dict[Any, sympy.Symbol]


@dataclass(frozen=True)
class Captured:
    """A copy of the captured graph, as it was before any pass (only for a proof alone)."""

    graph: GraphModule


@dataclass(frozen=True)
class Joint:
    """What the proof places (from `prove`, also where the proof fails).

    Attributes:
        graph: the joint graph.
        mark: where the loss is.
    """

    graph: GraphModule
    mark: Mark


@dataclass(frozen=True)
class Samples:
    """The symbol of the number of samples (from `prove`, where there is one)."""

    n: sympy.Symbol


@dataclass(frozen=True)
class RaggedAxes:
    """The node [R] with the sample of each row, by the symbol R (from `prove`)."""

    owners: dict[sympy.Symbol, Node]


@dataclass(frozen=True)
class Seen:
    """What a proof saw of a graph, for the certificate (from `prove`).

    Attributes:
        fingerprint: the graph's hash.
        places: how many values have which kind of placement.
        ops: the ops that occur.
        totals: how many 0-d totals over the batch there are.
        written: how many inputs the program writes to.
        shown: placements of what the caller sees apart from the loss, in order.
        placements: of the nodes of the captured graph, see `fxdp.proof.program`.
    """

    fingerprint: str
    places: dict[str, int]
    ops: frozenset[Any]
    totals: int
    written: int
    shown: tuple[Any, ...]
    placements: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Size:
    """A node with the number of samples (from `localize`)."""

    node: Node


@dataclass(frozen=True)
class GradientSums:
    """How every gradient is made of sums over samples (from `explain`)."""

    all: tuple[Gradient, ...]


@dataclass(frozen=True)
class Choices:
    """How the norms of every gradient with sums are found (from `plan`).

    Attributes:
        all: the choices.
        rows: of how many samples at a time gradients are streamed.
    """

    all: tuple[Choice, ...]
    rows: int = 1


@dataclass(frozen=True)
class Squares:
    """Nodes [N] with the squared norms of gradients, by parameter (from `measure`).

    `weigh` takes them: `share` puts others in their place.
    """

    nodes: dict[str, Node]


@dataclass(frozen=True)
class PerSample:
    """Per-sample gradients [N, ...] that exist as nodes (from `measure`).

    Attributes:
        nodes: by parameter.
        at_once: the parameters among them that one op measured, and one op is to sum.
    """

    nodes: dict[str, Node]
    at_once: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Streamed:
    """What is known of streamed gradients (from `stream`, where there are some).

    Attributes:
        squares: [N] float64, squared norms over all parameters of each group.
        factors: [N], the clip factors of each group.
        sums: the clipped sums, by parameter.
        scratch: bytes that it takes in addition, which stay for the next step.
    """

    squares: tuple[Node, ...]
    factors: tuple[Node, ...]
    sums: dict[str, Node]
    scratch: int


@dataclass(frozen=True)
class Factors:
    """What the samples count (from `weigh`).

    Attributes:
        nodes: [N], the clip factors, by parameter.
        norms: [N], over all parameters.
        finite: bool [N], whose loss and gradient are finite.
    """

    nodes: dict[str, Node]
    norms: Node
    finite: Node


@dataclass(frozen=True)
class ClippedSums:
    """Every gradient, clipped (from `clip`)."""

    all: tuple[Clipped, ...]

    @property
    def noisy(self) -> set[str]:
        """The parameters whose gradients hold samples; others need no noise."""
        return {c.gradient.parameter for c in self.all if c.total is not None}

    @property
    def public(self) -> set[str]:
        """The parameters whose gradients have terms that hold no samples."""
        return {c.gradient.parameter for c in self.all if c.public is not None}


@dataclass(frozen=True)
class Readable:
    """The graph before `lower`, for people (from `lower`)."""

    graph: GraphModule


@dataclass(frozen=True)
class PictureLayout:
    """Whether Inductor is to leave images in the layout they come in (after all passes)."""

    contiguous: bool


StageRecord = (
    Program
    | Captured
    | Joint
    | Samples
    | RaggedAxes
    | Seen
    | Size
    | GradientSums
    | Choices
    | Squares
    | PerSample
    | Streamed
    | Factors
    | ClippedSums
    | Readable
    | PictureLayout
    | Peak
)
Stage = TypeVar("Stage", bound=StageRecord)


@dataclass
class Study:
    """What is known of a graph so far.

    Attributes:
        table: the rules.
        outputs: how many of the graph's outputs belong to the forward pass.
        names: of the inputs, by placeholder name, as the user knows them.
        history: the names of the passes that ran.
        notes: what the user's lines allow, for the certificate.
    """

    table: Table
    outputs: int
    names: dict[str, str]
    history: list[str] = field(default_factory=lambda: [])
    notes: list[str] = field(default_factory=lambda: [])
    _records: dict[type, Any] = field(default_factory=lambda: {}, repr=False)

    def put(self, record: StageRecord) -> None:
        """Put down what a stage found, in place of what it found before."""
        self._records[type(record)] = record

    def of(self, kind: type[Stage]) -> Stage:
        """What a stage found.

        Raises:
            AssertionError: it has not run, or what it found was taken.
        """
        if kind not in self._records:
            ran = ", ".join(self.history) or "no pass"
            raise AssertionError(f"{kind.__name__}: not known, or not any more, after {ran}")
        return self._records[kind]

    def found(self, kind: type[Stage]) -> Stage | None:
        """What a stage found; None if it has not run, or what it found was taken."""
        return self._records.get(kind)

    def take(self, kind: type[Stage]) -> Stage:
        """What a stage found, for the last time: later passes make it untrue.

        Raises:
            AssertionError: as `of`.
        """
        record = self.of(kind)
        del self._records[kind]
        return record


def study(gm: GraphModule) -> Study:
    """What is known of a graph."""
    return gm.meta["study"]


def hinted(gm: GraphModule, cost: sympy.Expr) -> float:
    """A cost in numbers, for the sizes that the model was captured with."""
    env = study(gm).of(Size).node.meta["val"].node.shape_env
    return float(value_at_capture(env)(cost))


def at_hand(gm: GraphModule) -> Callable[[Any], int]:
    """What a symbolic size is, for the sizes that the model was captured with."""
    return lambda size: int(hinted(gm, expr(size)))
