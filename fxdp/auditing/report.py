"""What an audit found: claims, what was measured, and whether they fit."""

from dataclasses import dataclass
from typing import Literal, get_args

from rich.console import RenderableType
from rich.table import Table

from fxdp.graph.report import as_text

Test = Literal["neighbours", "canary", "noise"]


@dataclass(frozen=True)
class Finding:
    """One claim against one measurement.

    Attributes:
        test: which of the three.
        subject: what was measured, and in what unit.
        claim: what is claimed of it.
        at_most: whether the claim is an upper bound; else it is the value itself.
        measured: the estimate.
        low, high: an interval for the true value. NaN where a release was not finite, which is
            consistent with nothing.
    """

    test: Test
    subject: str
    claim: float
    at_most: bool
    measured: float
    low: float
    high: float

    @property
    def consistent(self) -> bool:
        """Whether some value in the interval fits the claim."""
        return self.low <= self.claim and (self.at_most or self.claim <= self.high)


@dataclass(frozen=True)
class Unjudged:
    """A claim that this audit could not have found violated, whatever was released.

    Attributes:
        test: which of the three.
        subject: what would have been measured.
        why: what is in the way, and what would help.
    """

    test: Test
    subject: str
    why: str


@dataclass(frozen=True)
class Audit:
    """All findings; true if every claim is consistent, and printable as a table.

    Not protected by DP: never publish it.

    A claim that could not be judged is no violation. But where one of the three tests judged
    nothing at all, the audit is not true.

    Attributes:
        findings: what was judged.
        unjudged: what was not.
        releases: how many noisy releases were looked at.
        confidence: a correct step is found consistent with this probability, or a higher one.
    """

    findings: tuple[Finding, ...]
    unjudged: tuple[Unjudged, ...]
    releases: int
    confidence: float

    def __bool__(self) -> bool:
        judged = {f.test for f in self.findings}
        return not self.violations and judged == set(get_args(Test))

    @property
    def violations(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if not f.consistent)

    def __rich__(self) -> RenderableType:
        title = f"{self.releases} releases, confidence {self.confidence:g}"
        table = Table("test", "quantity", "claim", "measured", "interval", "", title=title)
        for f in self.findings:
            claim = f"{'<= ' if f.at_most else ''}{f.claim:.4g}"
            verdict = "consistent" if f.consistent else "VIOLATED"
            interval = f"[{f.low:.4g}, {f.high:.4g}]"
            table.add_row(f.test, f.subject, claim, f"{f.measured:.4g}", interval, verdict)
        for u in self.unjudged:
            table.add_row(u.test, u.subject, "", "", u.why, "not judged")
        return table

    def __str__(self) -> str:
        return as_text(self)
