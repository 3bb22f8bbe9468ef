"""A run as text: a rich table for each workload, and the tables of README in Markdown."""

from collections.abc import Callable, Iterable

from rich.console import Console
from rich.table import Table

from tools.bench.result import Entry, Heat, Run

PLAIN, COMPILED = "plain", "plain-compiled"
COLUMNS = ("", "best", "median", "x plain", "x compiled", "memory", "cold", "warm", "error")


def show(heat: Heat, console: Console) -> None:
    """One workload, a row a contender."""
    title = f"{heat.title}: {heat.parameters:,} parameters, {heat.clipped:.0%} of samples clipped"
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for entry in heat.entries:
        table.add_row(*row(heat, entry))
    console.print(table)
    for entry in heat.entries:
        for note in (entry.verdict.why, *entry.notes):
            if note:
                console.print(f"  {entry.contender}: {note}", markup=False, highlight=False)


def row(heat: Heat, entry: Entry) -> list[str]:
    """A contender's figures: milliseconds, ratios, MiB, seconds of the first step."""
    name, alone = entry.contender, entry.alone
    first = [name, entry.verdict.status, "", "", ""]
    if entry.times is not None:
        ratios = [told(heat.ratio(name, to), "{:.2f}") for to in (PLAIN, COMPILED)]
        times = [f"{1e3 * t:.1f} ms" for t in (entry.times.best, entry.times.median)]
        first = [name, *times, *ratios]
    return [
        *first,
        told(alone and alone.memory_mib, "{:.1f} MiB"),
        told(alone and alone.cold_seconds, "{:.1f} s"),
        told(alone and alone.warm_seconds, "{:.1f} s"),
        told(entry.verdict.error, "{:.0e}"),
    ]


def told(value: float | None, how: str) -> str:
    return "" if value is None else how.format(value)


def markdown(run: Run) -> str:
    """Times as multiples of the plain eager step; memory and compilation where measured."""
    machine = run.machine
    lines = [
        f"`{machine.command}` on {machine.hardware}, {machine.threads} thread"
        f"{'s' * (machine.threads != 1)}, torch {machine.torch}, Opacus {machine.opacus}. "
        "Shortest step, as a multiple of the plain eager one:",
        "",
        *grid(run, "plain, ms", multiple),
    ]
    if any(e.alone for h in run.heats for e in h.entries):
        lines += ["", "Peak memory of a step, MiB:", "", *grid(run, "plain", mebibytes)]
        how = "with empty caches and with those that an earlier process left"
        lines += [
            "",
            f"First step in a new process, s, {how}:",
            "",
            *grid(run, "plain", first_step),
        ]
    return "\n".join(lines)


def grid(run: Run, first: str, cell: Callable[[Heat, Entry], str]) -> Iterable[str]:
    """A Markdown table, a row a workload and a column a contender."""
    names = list(dict.fromkeys(e.contender for h in run.heats for e in h.entries))
    heads = [first if name == PLAIN else name for name in names]
    yield "| " + " | ".join(["workload", *heads]) + " |"
    yield "|" + "---|" * (len(names) + 1)
    for heat in run.heats:
        entries = {e.contender: e for e in heat.entries}
        cells = [cell(heat, entries[name]) if name in entries else "" for name in names]
        yield "| " + " | ".join([heat.title, *cells]) + " |"


def multiple(heat: Heat, entry: Entry) -> str:
    if entry.times is None:
        return entry.verdict.status
    ratio = heat.ratio(entry.contender, PLAIN)
    if entry.contender == PLAIN or ratio is None:
        return f"{1e3 * entry.times.best:.1f}"
    return f"{ratio:.2f}"


def first_step(heat: Heat, entry: Entry) -> str:
    if entry.alone is None:
        return entry.verdict.status
    cold, warm = entry.alone.cold_seconds, entry.alone.warm_seconds
    return f"{cold:.1f}" + told(warm, " / {:.1f}")


def mebibytes(heat: Heat, entry: Entry) -> str:
    return told(entry.alone and entry.alone.memory_mib, "{:.1f}") or entry.verdict.status
