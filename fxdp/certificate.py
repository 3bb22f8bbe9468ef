"""What was proven of a model, what was assumed, and by whom."""

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import RenderableType
from rich.table import Table

from fxdp.graph_pass import Study
from fxdp.report import as_text
from fxdp.rules import Table as Rules


@dataclass(frozen=True)
class Obligation:
    """One promise.

    Attributes:
        name: P1 to P6.
        promise: what is promised.
        proven: whether the graph proves it; if not, it is assumed.
        evidence: what the proof found, or who assumes it.
    """

    name: str
    promise: str
    proven: bool
    evidence: str


@dataclass(frozen=True)
class Certificate:
    """The six obligations of one captured graph, and the assumptions around them.

    Guarantees:
        - An obligation marked proven was checked by a pass on the graph with this hash, for
          every batch size from 2 up; sizes 0 and 1 run the same graph with padded rows.
        - It is a statement about the graph in real arithmetic. Generated code is compared with
          the graph at its first step, which is evidence and no proof; `fallbacks` lists where
          it differed.
        - What is under `assumptions` cannot be seen in a graph.
    """

    obligations: tuple[Obligation, ...]
    assumptions: tuple[str, ...]
    fallbacks: tuple[str, ...]
    graph: str
    versions: dict[str, str]

    def __bool__(self) -> bool:
        return all(o.proven for o in self.obligations)

    def __rich__(self) -> RenderableType:
        table = Table("", "obligation", "", "evidence", title=f"fxdp certificate {self.graph[:12]}")
        for o in self.obligations:
            table.add_row(o.name, o.promise, "proven" if o.proven else "assumed", o.evidence)
        for text in self.assumptions:
            table.add_row("", text, "assumed", "")
        for text in self.fallbacks:
            table.add_row("", "compiled code replaced by its graph", "checked", text)
        return table

    def __str__(self) -> str:
        return as_text(self)


ASSUMPTIONS = (
    "expected_batch_size is public and was not read from the data",
    "samples were drawn the way the accountant is told",
    "the loss is scaled, if at all, by constants before backward()",
    "floating point stands for real numbers",
)


def certify(study: Study, rules: Rules, fallbacks: list[str]) -> Certificate:
    """The certificate of a graph that went through the proof."""
    graph = study.history["tidy"]
    gradients, own = study.gradients, study.table.keys() - rules.keys()
    changed = {op for op in rules if op in study.table and study.table[op] is not rules[op]}
    sums = sum(len(g.sums) for g in gradients)
    shared = sum(len(g.sums) > 1 for g in gradients)
    public = sum(not g.sums for g in gradients)
    nodes = graph.count("\n")
    assumed = tuple(f"the rule of {op} is right (rules=)" for op in sorted(map(str, own | changed)))
    return Certificate(
        (
            Obligation("P1", "rows are independent", True, f"{nodes} lines of graph placed"),
            Obligation(
                "P2",
                "every use of every parameter is accounted for",
                True,
                f"{len(gradients)} gradients from {sums} sums over samples, {shared} of them "
                f"shared, {public} without samples",
            ),
            Obligation("P3", "what is clipped is what is released", True, "one form for both"),
            Obligation("P4", "the loss splits into one for each sample", True, "totals made local"),
            Obligation("P5", "nothing is written from samples", True, "mutated inputs are shared"),
            Obligation("P6", "one clip bound and one noise scale", True, "one release mark"),
        ),
        ASSUMPTIONS + assumed,
        tuple(fallbacks),
        hashlib.sha256(graph.encode()).hexdigest(),
        {"torch": torch.__version__, "fxdp": own_version()},
    )


def own_version() -> str:
    """fxdp's version, as installed."""
    try:
        return version("fxdp")
    except PackageNotFoundError:
        return "0"
