"""What was proven of a model, what was assumed, and by whom."""

import json
from collections import Counter
from dataclasses import asdict, dataclass

import torch
from rich.console import RenderableType
from rich.table import Table

from fxdp.diagnostics.version import own_version
from fxdp.graph.report import as_text
from fxdp.graph.study import GradientSums, Joint, Program, Seen, Study
from fxdp.rules import Table as Rules

FORMAT = 2  # of the JSON text


@dataclass(frozen=True)
class Obligation:
    """One promise.

    Attributes:
        name: P1 to P6.
        promise: what is promised.
        proven: whether the graph proves it alone; if not, `by` says who answers for the rest.
        evidence: what the proof found.
        by: who assumes what the graph does not prove; empty where it is proven.
    """

    name: str
    promise: str
    proven: bool
    evidence: str
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assumption:
    """Something that no graph shows.

    Attributes:
        what: what is taken to be true.
        by: who takes it to be true, and answers for it.
    """

    what: str
    by: str


@dataclass(frozen=True)
class Value:
    """One value of the captured graph, before any pass, and where its samples are.

    Attributes:
        op: what makes it.
        operands: from what; %3 is the result of value 3.
        results: dtypes and shapes, with N for the number of samples.
        placements: "Replicate", "Shard 0 1" and the like, see `fxdp.checker.claims`; those of
            several results with a semicolon between. None where a pass drops the value, several
            where samples may lie in any order.
    """

    op: str
    operands: str
    results: str
    placements: tuple[str, ...]


@dataclass(frozen=True)
class Certificate:
    """The six obligations of one captured graph, and the assumptions around them.

    Guarantees:
        - An obligation that is proven was checked by a pass on the graph with this hash, for
          every batch size from 2 up; sizes 0 and 1 run the same graph with padded rows.
        - An obligation that rests on a rule of the user's, or on a line that an
          `# fxdp: allow[...]` comment allows, is not proven but assumed, and says by whom.
        - The same model, inputs and versions give the same certificate, in any process.
        - Whoever trusts no compiler can check it: `fxdp.check_certificate`.
        - `Certificate.from_json(c.to_json()) == c`.

    It does not say:
        - that the generated code computes what the graph says. The first step of each
          compilation is compared with the graph, which is evidence and no proof; `fallbacks`
          lists where the two differed, or nothing was generated, and the graph was run instead.
        - anything of another program: other options in forward, other dtypes, other inputs make
          other graphs, each with a certificate of its own.
        - how large epsilon is. That follows from sampling and steps, see `fxdp.privacy`.
        - what is under `assumptions`.

    Attributes:
        obligations: P1 to P6.
        assumptions: what no graph shows.
        fallbacks: generated code that differed from its graph and was replaced by it, and graphs
            that torch could not compile.
        graph: SHA-256 of the graph, see `fxdp.proof.fingerprint`.
        versions: of torch and fxdp.
        values: those of the graph as it was captured, with their placements.
    """

    obligations: tuple[Obligation, ...]
    assumptions: tuple[Assumption, ...]
    fallbacks: tuple[str, ...]
    graph: str
    versions: dict[str, str]
    values: tuple[Value, ...]

    def __bool__(self) -> bool:
        """Is every obligation proven, none assumed?"""
        return all(o.proven for o in self.obligations)

    def to_json(self) -> str:
        """The certificate as a JSON object, for a file."""
        return json.dumps({"fxdp_certificate": FORMAT} | asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Certificate":
        """What `to_json` wrote.

        Raises:
            ValueError: the text is not a certificate, or one of another format.
        """
        try:
            data = json.loads(text)
            if data.pop("fxdp_certificate") != FORMAT:
                raise ValueError(f"this fxdp reads certificates of format {FORMAT} only")
            obligations = [Obligation(**o | {"by": tuple(o["by"])}) for o in data["obligations"]]
            assumptions = [Assumption(**a) for a in data["assumptions"]]
            fallbacks, graph, versions = data["fallbacks"], data["graph"], data["versions"]
            values = [Value(**v | {"placements": tuple(v["placements"])}) for v in data["values"]]
            words: list[object] = [
                *(w for o in obligations for w in (o.name, o.promise, o.evidence, *o.by))
            ]
            words += [graph, *fallbacks, *(w for a in assumptions for w in (a.what, a.by))]
            words += [w for v in values for w in v.placements]
            if not all(isinstance(w, str) for w in words):
                raise TypeError("a number, a list or an object is where words are expected")
        except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not a certificate of fxdp: {error}") from None
        parts = (tuple(obligations), tuple(assumptions), tuple(fallbacks), graph, versions)
        return cls(*parts, tuple(values))

    def __rich__(self) -> RenderableType:
        table = Table("", "obligation", "", "evidence", title=f"fxdp certificate {self.graph[:12]}")
        for o in self.obligations:
            by = "".join(f"\nassumed by {who}" for who in o.by)
            table.add_row(o.name, o.promise, "proven" if o.proven else "assumed", o.evidence + by)
        for a in self.assumptions:
            table.add_row("", a.what, "assumed", f"by {a.by}")
        for text in self.fallbacks:
            table.add_row("", "compiled code replaced by its graph", "checked", text)
        return table

    def __str__(self) -> str:
        return as_text(self)


CALLER, FXDP = "whoever trains", "fxdp"
ASSUMPTIONS = (
    Assumption("expected_batch_size is public and was not read from the data", CALLER),
    Assumption("samples were drawn as the accountant was given", CALLER),
    Assumption("the loss is scaled, if at all, by constants before backward()", CALLER),
    Assumption("floating point stands for real numbers", FXDP),
)


def certify(
    study: Study,
    rules: Rules,
    fallbacks: list[str],
    assumptions: tuple[Assumption, ...] = ASSUMPTIONS,
) -> Certificate:
    """The certificate of a graph that went through the proof."""
    seen, gradients = study.of(Seen), study.of(GradientSums).all
    places = Counter(seen.places)
    sums = sum(len(g.sums) for g in gradients)
    shared = sum(len(g.sums) > 1 for g in gradients)
    public = sum(not g.sums for g in gradients)
    changed = {op for op in seen.ops if study.table.get(op) is not rules.get(op)}
    own = tuple(f"the rule of {op} in rules=" for op in sorted(map(str, changed)))
    lines = tuple(f"the comment on the line: {note}" for note in study.notes)
    reduction = study.of(Joint).mark.reduction
    reduced = (f"the loss, made outside, by loss_reduction={reduction!r}",) if reduction else ()
    released = "noise" in study.history
    checked = "; the released graph holds no plain sum" if released else ""
    return Certificate(
        (
            obligation(
                "P1",
                "rows are independent",
                f"{places.total()} values placed: {places['Shard']} hold samples, "
                f"{places['Partial']} are sums over them, {places['Replicate']} hold none",
                own,
            ),
            obligation(
                "P2",
                "every use of every parameter is accounted for",
                f"{len(gradients)} gradients come from {sums} sums over samples, {shared} from "
                f"more than one, {public} from none",
                own,
            ),
            obligation(
                "P3",
                "what is clipped is what is released",
                f"norm and clipped sum of {sums} sums come from one form each{checked}",
            ),
            obligation(
                "P4",
                "the loss splits into one for each sample",
                f"{seen.totals} totals over the batch were made each sample's own",
                reduced,
            ),
            obligation(
                "P5",
                "nothing made of samples leaves without noise",
                f"{seen.written} written inputs hold no samples; {len(seen.shown)} outputs are "
                "the caller's to keep",
                lines,
            ),
            obligation("P6", "one clip bound and one noise scale", "one mark of release"),
        ),
        assumptions,
        tuple(fallbacks),
        seen.fingerprint,
        {"torch": torch.__version__, "fxdp": own_version()},
        tuple(
            Value(line.op, line.operands, line.results, placements)
            for line, placements in zip(study.of(Program).lines, seen.placements, strict=True)
        ),
    )


def obligation(name: str, promise: str, evidence: str, by: tuple[str, ...] = ()) -> Obligation:
    """An obligation that is proven unless somebody answers for a part of it."""
    return Obligation(name, promise, not by, evidence, by)
