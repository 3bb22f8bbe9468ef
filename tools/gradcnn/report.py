"""A grid's times as text and as records for a file: ours, the paper's, and the ratios of both."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.bench.timing import Times
from tools.gradcnn.grids import Grid, Point
from tools.gradcnn.published import BATCHES, NO_DP

HEAD = ("", "", "seconds", "+-", "x no DP", "x crb", "paper", "x no DP", "x crb")
NUMBER = 8  # how wide a column of numbers is; names are wider
WIDTHS = (20, 11, *[NUMBER] * 7)


@dataclass(frozen=True)
class Line:
    """One contender at one point; all times are seconds for 20 batches.

    Attributes:
        best: the least of all rounds, which ratios are made of.
        mean, deviation: over the rounds, which figures show, as the paper's do.
        ratio, to_crb: `best` over that of plain PyTorch, and of crb.
        paper, paper_ratio, paper_to_crb: the same of the paper, where it has them.
    """

    experiment: str
    point: str
    panel: str
    x: float
    contender: str
    best: float
    mean: float
    deviation: float
    rounds: int
    ratio: float | None
    to_crb: float | None
    paper: float | None
    paper_ratio: float | None
    paper_to_crb: float | None


def lines(grid: Grid, point: Point, times: Mapping[str, Times], batches: int) -> list[Line]:
    """A line for each contender; a timing covers so many batches."""
    per = BATCHES / batches
    best = {name: t.best * per for name, t in times.items()}
    return [
        Line(
            grid.name, point.name, point.panel, point.x, name, best[name],
            statistics.fmean(t.seconds) * per, statistics.pstdev(t.seconds) * per, len(t.seconds),
            over(best, name, NO_DP), over(best, name, "crb"), point.published.get(name),
            over(point.published, name, NO_DP), over(point.published, name, "crb"),
        )
        for name, t in times.items()
    ]  # fmt: skip


def over(seconds: Mapping[str, float], name: str, other: str) -> float | None:
    """A ratio, where both are known."""
    if name not in seconds or not seconds.get(other):
        return None
    return seconds[name] / seconds[other]


def heading(title: str, scaled: str) -> str:
    """What is measured, and what is not as in the paper."""
    return "\n".join((
        title,
        f"scaled: {scaled}" if scaled else "at the paper's size",
        f"seconds for {BATCHES} batches, best of the rounds; +- one standard deviation of all",
        "no DP is plain PyTorch, not compiled; auto has no memory budget, as the others have none",
        "paper: P100, PyTorch 1.1. Its multi replicates the model and its naive runs it once for",
        "each sample; ours are vmap and a loop over the samples, inside one backward pass",
    ))  # fmt: skip


def text(rows: Sequence[Line], head: bool = True) -> str:
    """The lines as a table; its columns are as wide whatever the lines."""
    cells = [HEAD] if head else []
    before = ""
    for row in rows:
        numbers = (row.best, row.deviation, row.ratio, row.to_crb)
        papers = (row.paper, row.paper_ratio, row.paper_to_crb)
        name = row.point if row.point != before else ""
        cells.append((name, row.contender, *map(shown, numbers), *map(shown, papers)))
        before = row.point
    return "\n".join(
        "  ".join(
            c.ljust(w) if w > NUMBER else c.rjust(w) for c, w in zip(row, WIDTHS, strict=True)
        ).rstrip()
        for row in cells
    )


def shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}" if number < 100 else f"{number:.1f}"


def summary(rows: Sequence[Line]) -> str:
    """Is auto as fast as the paper's two, and is the faster of these the same as there?"""
    points: dict[str, dict[str, Line]] = {}
    for row in rows:
        points.setdefault(row.point, {})[row.contender] = row
    text: list[str] = []
    with_auto = [p for p in points.values() if p.keys() >= {"auto", "crb", "multi"}]
    if with_auto:
        ahead = sum(p["auto"].best <= min(p["crb"].best, p["multi"].best) for p in with_auto)
        text.append(f"auto is as fast as the faster of crb and multi, or faster: {ahead} of "
                    f"{len(with_auto)} points")  # fmt: skip
    both = [p for p in points.values() if {"crb", "multi"} <= p.keys()]
    known = [p for p in both if p["crb"].paper and p["multi"].paper]
    if known:
        alike = sum(faster(p, "best") == faster(p, "paper") for p in known)
        text.append(f"the faster of crb and multi is the paper's: {alike} of {len(known)} points")
    return "\n".join(text)


def faster(point: Mapping[str, Line], what: str) -> str:
    """crb or multi, by one of the fields of a line."""
    return min(("crb", "multi"), key=lambda name: getattr(point[name], what))
