"""The report of a compiled step: one row for each parameter's sums over samples."""

from dataclasses import dataclass

import sympy
from rich.console import Console, Group, RenderableType
from rich.table import Table

from fxdp.forms.strategy import STRATEGIES
from fxdp.graph.memory import Peak
from fxdp.graph.records import Choice
from fxdp.graph.study import Choices, Samples, Study
from fxdp.graph.sums import value
from fxdp.shapes import shape_of, show


@dataclass(frozen=True)
class Row:
    """One parameter.

    Attributes:
        parameter: its name.
        shape: of the parameter.
        sums: how many sums over samples its gradient is made of.
        kind: what those are together.
        strategy: how the per-sample norms are found.
        keep: whether per-sample gradients stay until the clipped sum is made of them.
        costs: predicted cost of each possible strategy, in flops, as text in N.
        seconds: measured time of each that was tried, for norms and clipped sum together, the
            better of keeping the per-sample gradients in between and not.
    """

    parameter: str
    shape: str
    sums: int
    kind: str
    strategy: str
    keep: bool
    costs: dict[str, str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Report:
    """The rows of a compiled step; `print` or `rich.print` shows them as a table.

    Attributes:
        rows: one for each parameter.
        peak: how much memory a step is expected to take.
    """

    rows: tuple[Row, ...]
    peak: Peak | None = None

    def __rich__(self) -> RenderableType:
        table = Table(
            "parameter", "shape", "sums", "kind", "strategy", "predicted flops", "measured"
        )
        for row in self.rows:
            shown = [s for s, traits in STRATEGIES.items() if traits.shown and s in row.costs]
            costs = ", ".join(f"{name} {row.costs[name]}" for name in shown)
            times = ", ".join(f"{name} {1e3 * t:.3g} ms" for name, t in row.seconds.items())
            how = f"{row.strategy}, kept" if row.keep else row.strategy
            first = (row.parameter, row.shape, str(row.sums), row.kind)
            table.add_row(*first, how, costs, times)
        return Group(table, str(self.peak)) if self.peak else table

    def __str__(self) -> str:
        return as_text(self)


def as_text(shown: RenderableType) -> str:
    """What rich would print, as plain text."""
    console = Console(width=140)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def report(study: Study) -> Report:
    """The report of a compiled graph."""
    return Report(tuple(row(study, c) for c in study.of(Choices).all), study.found(Peak))


def row(study: Study, choice: Choice) -> Row:
    """The row of one parameter."""
    n = study.of(Samples).n
    shape = show(shape_of(value(choice.gradient.node).shape), n)
    costs = {s: str(c.subs(n, sympy.Symbol("N"))) for s, c in choice.costs.items()}
    seconds: dict[str, float] = {}
    for t in choice.trials:
        seconds[t.strategy] = min(t.seconds, seconds.get(t.strategy, t.seconds))
    keep = choice.keep and STRATEGIES[choice.strategy].materialises
    return Row(
        choice.gradient.parameter, shape, len(choice.gradient.sums), choice.kind,
        choice.strategy, keep, costs, seconds,
    )  # fmt: skip
