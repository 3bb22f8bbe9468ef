"""Checks a certificate by capturing the model again: for whoever trusts neither author nor fxdp.

A certificate holds every value of the captured graph, with the placement that the proof found. The
checker captures the model itself, before any pass, and asks of every value in order whether its
placement follows from those of its operands (`fxdp.checker.walk`): by a table of rules of its own
(`fxdp.checker.elements`, `fxdp.checker.families`), or else by running the op on random tensors
(`fxdp.checker.trial`). It shares no code with the passes, the proof or the rules. What the
certificate says is only a hint to it: a wrong one is found out, and so is a wrong rule of fxdp's or
of the user's. Then it looks at what leaves the graph (`fxdp.checker.ends`), and compares the hash
and the evidence of every obligation with those of fxdp's own proof, run again.

What it cannot do without:

    the capture   Dynamo and AOTAutograd, with fxdp's settings and decompositions, say which graph
                  the model is; what is captured is what is checked
    the passes    behind the proof: that the released code clips and adds noise to the sums over
                  samples that were found (P3 is theirs alone), and hands each reader of a total
                  its own share of it; `fxdp.verify` and `fxdp.audit` look at that by running it
    the process   the model's Python runs in it, and could do anything to the checker

What it has no rule for and cannot try is not accepted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxdp.capture.inputs import BatchDims
from fxdp.checker import ends
from fxdp.checker.claims import read
from fxdp.checker.walk import Walk
from fxdp.compiler import attempt
from fxdp.graph.origin import nearest
from fxdp.graph.study import Captured, Program, Study
from fxdp.module.inspection import Attempt
from fxdp.proof.certificate import Assumption, Certificate
from fxdp.torch_internals import value_at_capture

# An assumption that another takes the place of, where the number is derived from the samples'.
EXPECTED = "expected_batch_size is public and was not read from the data"
DERIVED = "public: the number of samples, from which"


@dataclass(frozen=True)
class Verdict:
    """What the checker says of a certificate.

    Attributes:
        why: why it is not accepted, in one line; "" where it is.
        by_rule: the ops that rules of the checker's settled, with how many different calls.
        by_trial: the ops that were tried on random tensors, likewise.
        assumed: what the certificate takes to be true, and nobody can check, each with who says so.
    """

    why: str
    by_rule: dict[str, int]
    by_trial: dict[str, int]
    assumed: tuple[str, ...]

    def __bool__(self) -> bool:
        """Is the certificate accepted?"""
        return not self.why

    def __str__(self) -> str:
        if self.why:
            return f"not accepted: {self.why}"
        lines = [
            f"accepted: every value of the captured graph follows; {len(self.by_rule)} ops by the "
            f"checker's rules, {len(self.by_trial)} by trial on random tensors"
            + (f" ({', '.join(sorted(self.by_trial))})" if self.by_trial else "")
        ]
        return "\n".join(lines + [f"assumed: {line}" for line in self.assumed])


class Refused(Exception):
    """A certificate is not accepted; the text says why."""


def check_certificate(
    certificate: Certificate,
    model: nn.Module,
    *args: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    batch_dims: BatchDims = 0,
    rules: Mapping[Any, Any] | None = None,
    **kwargs: Any,
) -> Verdict:
    """Check a certificate of a model without the compiler that gave it.

    Args:
        certificate: of `fxdp.prove`, of a private module, or read by `Certificate.from_json`. One
            that was made with `loss_reduction=` is of another graph, and not accepted.
        model, args, loss_fn, batch_dims, kwargs: as for `fxdp.prove`.
        rules: of fxdp's own proof when it runs again, to compare obligations; the checker does not
            read them. None for `fxdp.RULES`.

    Raises:
        TypeError, ValueError: the arguments do not fit together.
        ProofError: the model cannot be captured.
    """
    if rules is not None:
        kwargs = kwargs | {"rules": rules}
    found = attempt(model, *args, loss_fn=loss_fn, batch_dims=batch_dims, **kwargs)
    return judged(certificate, found)


def judged(certificate: Certificate, found: Attempt) -> Verdict:
    """The verdict on a certificate.

    Args:
        found: what came of fxdp's own proof of the model, and of the capture before it.

    Raises:
        ProofError: the model could not be captured.
    """
    if found.study is None or found.study.found(Captured) is None:
        assert found.error is not None
        raise found.error
    by: list[Walk] = []
    why = ""
    try:
        check_graph(certificate, found.study, by)
        if found.certificate is None:
            raise Refused(f"fxdp's own proof refuses the model here: {first_line(found.error)}")
        check_words(certificate, found.certificate)
    except Refused as error:
        why = str(error)
    walk = by[0] if by else None
    return Verdict(
        why,
        dict(walk.by_rule) if walk else {},
        dict(walk.by_trial) if walk else {},
        tuple(assumed(certificate)),
    )


def first_line(error: BaseException | None) -> str:
    """What an error says, on one line."""
    return str(error).strip().partition("\n")[0]


def check_graph(certificate: Certificate, study: Study, by: list[Walk]) -> None:
    """The graph is the one of the certificate, and every value of it follows.

    Args:
        by: gets the walk, which knows what was settled how.

    Raises:
        Refused: it is not so.
    """
    gm = study.of(Captured).graph
    program = study.of(Program)
    nodes = list(gm.graph.nodes)
    for node, line, value in zip(nodes, program.lines, certificate.values, strict=False):
        if (line.op, line.operands, line.results) != (value.op, value.operands, value.results):
            raise Refused(
                f"the graph is another: {told(node)} is {line.op} {line.results} here, and "
                f"{value.op} {value.results} in the certificate"
            )
    if len(certificate.values) != len(nodes):
        raise Refused(
            f"the graph is another: it has {len(nodes)} values, the certificate has "
            f"{len(certificate.values)}"
        )
    symbols = {str(name): symbol for symbol, name in program.sizes.items()}
    if "N" not in symbols:
        raise Refused("the number of samples is fixed")
    walk = walked(gm, certificate, symbols)
    by.append(walk)
    check_ends(gm, certificate, study.outputs, walk)


def walked(gm: GraphModule, certificate: Certificate, symbols: dict[str, sympy.Symbol]) -> Walk:
    """Every value of the graph, as far as it follows.

    Raises:
        Refused: a claim that cannot be read, or a question about the number of samples.
    """
    n = symbols["N"]
    values = (node.meta.get("val") for node in gm.graph.nodes)
    env: Any = next(v.fake_mode.shape_env for v in values if isinstance(v, torch.Tensor))  # type: ignore[attr-defined]
    if (question := ends.other_program(env, n)) is not None:
        raise Refused(question)
    hint = value_at_capture(env)
    backed = [s for s in symbols.values() if s != n and s in env.var_to_range]
    hints = {s: int(hint(s)) for s in backed if not str(s).startswith("u")}
    walk = Walk(gm, n, hints)
    for node, value in zip(gm.graph.nodes, certificate.values, strict=True):
        if node.op == "output":
            continue
        try:
            claims = [read(text, symbols) for text in value.placements]
        except ValueError as error:
            raise Refused(f"{told(node)}: {error}") from error
        walk.visit(node, claims)
    return walk


def check_ends(gm: GraphModule, certificate: Certificate, forward: int, walk: Walk) -> None:
    """What leaves the graph follows, and may leave it.

    Args:
        forward: how many outputs the forward pass has.

    Raises:
        Refused: with the first value that does not follow.
    """
    found = ends.releases(gm)
    if len(found) != 1:
        raise Refused(f"there are {len(found)} releases")
    allowed = any("comment on the line" in by for o in certificate.obligations for by in o.by)
    leaving = ends.outputs(gm, forward)
    if not any(role == "gradient" for _, role in leaving):
        raise Refused("there is no gradient")
    if (number := ends.counts(gm, walk.n)) is not None:
        raise Refused(f"{told(number)}: the number of samples, or of their rows, leaves the step")
    # What a line allows to be kept may be made in any way.
    strict = [(node, role) for node, role in leaving if role != "kept" or not allowed]
    needed = ends.ancestors([node for node, _ in strict] + found)
    for node, value in zip(gm.graph.nodes, certificate.values, strict=True):
        if node in needed and node in walk.failed:
            said = " or ".join(value.placements) or "nothing"
            raise Refused(f"{told(node)}: claimed {said}, and {walk.failed[node]}")
    for node, role in strict:
        if (why := ends.trouble(role, walk.known[node])) is not None:
            raise Refused(f"{told(node)}: {why}")


def told(node: Node) -> str:
    """A value: its line in the model, its name and its op."""
    at = nearest(node)
    where = f"{at.file}:{at.line}: " if at is not None else ""
    return f"{where}{node.name} ({node.target})"


def check_words(certificate: Certificate, own: Certificate) -> None:
    """The hash, the obligations and the assumptions are those of fxdp's own proof, run again.

    Args:
        own: the certificate that it gives.

    Raises:
        Refused: something differs, or is missing.
    """
    if certificate.graph != own.graph:
        raise Refused(f"the hash of the graph is {own.graph[:12]}, not {certificate.graph[:12]}")
    said = {o.name: o for o in certificate.obligations}
    if len(said) != len(certificate.obligations):
        raise Refused("an obligation is there twice")
    for o in own.obligations:
        other = said.pop(o.name, None)
        if other is None:
            raise Refused(f"the obligation {o.name} is missing")
        same = (o.promise, o.proven, o.by) == (other.promise, other.proven, other.by)
        # A certificate of a step that was compiled says more of what came after the proof.
        if not same or other.evidence.partition(";")[0] != o.evidence.partition(";")[0]:
            raise Refused(f"the obligation {o.name} is another: {o.evidence} {' '.join(o.by)}")
    if said:
        raise Refused(f"an obligation {next(iter(said))} is unknown")
    for assumption in own.assumptions:
        if not is_listed(assumption, certificate):
            raise Refused(f"an assumption is missing: {assumption.what}")


def is_listed(assumption: Assumption, certificate: Certificate) -> bool:
    """Does a certificate list an assumption, or what stands in its place?"""
    derived = any(a.what.startswith(DERIVED) for a in certificate.assumptions)
    return assumption in certificate.assumptions or assumption.what == EXPECTED and derived


def assumed(certificate: Certificate) -> list[str]:
    """What a reader must accept beside the check."""
    lines = [f"{o.name}, by {by}" for o in certificate.obligations for by in o.by]
    lines += [f"{a.what} (by {a.by})" for a in certificate.assumptions]
    lines += [f"compiled code replaced by its graph: {text}" for text in certificate.fallbacks]
    return [*lines, "P3, by the passes behind the proof: what is clipped is what is released"]
