"""What a run finds out, as data, as a table, and as JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import mean, median, stdev

from rich.table import Table

from tools.bench.result import Machine

COLUMNS = (
    "epsilon", "sigma", "sigma by Opacus's RDP", "accuracy, fxdp", "accuracy, Opacus",
    "step, fxdp", "step, Opacus",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Both contenders at one budget.

    Attributes:
        epsilon: the budget.
        sigma: the noise multiplier that both had: what dp-accounting's PLD asks for.
        by_rdp: the one that Opacus's own RDP accountant asks for.
        spent: {name: epsilon that its own account says was spent}; fxdp's PLD, Opacus's RDP.
        accuracy: {name: test accuracy of each seed, in [0, 1]}.
        seconds: {name: median processor time of a step, of each seed}.
    """

    epsilon: float
    sigma: float
    by_rdp: float
    spent: dict[str, float]
    accuracy: dict[str, list[float]]
    seconds: dict[str, list[float]]

    def cells(self) -> list[str]:
        """The row as text; accuracy with its standard deviation over the seeds."""
        return [
            f"{self.epsilon:g}",
            f"{self.sigma:.3f}",
            f"{self.by_rdp:.3f}",
            *(spread(self.accuracy[name]) for name in ("fxdp", "Opacus")),
            *(f"{1e3 * median(self.seconds[name]):.1f} ms" for name in ("fxdp", "Opacus")),
        ]


@dataclass(frozen=True)
class Run:
    """One run of the tool."""

    machine: Machine
    seeds: int
    steps: int
    rows: tuple[Row, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Run":
        data = json.loads(text)
        rows = tuple(Row(**row) for row in data["rows"])
        return Run(Machine(**data["machine"]), data["seeds"], data["steps"], rows)


def spread(values: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    deviation = f" +- {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation} %"


def table(run: Run) -> Table:
    """A row a budget."""
    shown = Table(title=f"{run.steps} steps, {run.seeds} seeds", title_justify="left")
    for column in COLUMNS:
        shown.add_column(column, justify="right")
    for row in run.rows:
        shown.add_row(*row.cells())
    return shown


def markdown(run: Run) -> str:
    """The table of README, with the command that makes it."""
    return "\n".join(lines(run))


def lines(run: Run) -> Iterable[str]:
    machine = run.machine
    yield (
        f"`{machine.command}` on {machine.hardware}, {machine.threads} thread"
        f"{'s' * (machine.threads != 1)}, torch {machine.torch}, Opacus {machine.opacus}; "
        f"{run.steps} steps, mean and standard deviation of test accuracy over {run.seeds} seeds, "
        "median processor time of a step:"
    )
    yield ""
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    for row in run.rows:
        yield "| " + " | ".join(row.cells()) + " |"
