"""Reports for people: a line for each finding, or its source with carets as rustc shows it."""

import io
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from fxdp.lint.result import Finding, Result

LONGEST = 8  # ops of a route that are shown


def render(results: Sequence[Result], console: Console, quiet: bool = False, *, full: bool) -> None:
    """Write the findings; unless `quiet`, also what helps, what was assumed, and a summary."""
    findings = sorted_findings(results)
    for f in findings:
        console.print(excerpt(f) if full else line(f), soft_wrap=True)
        if f.help and not full and not quiet:
            console.print(Text("    help: ", "bold").append(f.help, "not bold"), soft_wrap=True)
    if quiet:
        return
    for result in results:
        for told in result.assumed if full or result.findings else ():
            console.print(Text(f"note: {result.target}: assumed that {told}"), soft_wrap=True)
    if text := summary(results, len(findings)):
        console.print(text, soft_wrap=True)


def sorted_findings(results: Sequence[Result]) -> list[Finding]:
    """All findings by place; one that several models share is reported once."""
    found: dict[object, Finding] = {}
    for f in (f for r in results for f in r.findings):
        found.setdefault((f.path, f.line, f.column, f.code.code, f.message), f)
    return sorted(found.values(), key=lambda f: (f.path, f.line, f.column, f.code.code))


def line(f: Finding) -> Text:
    """`path:line:col: FXD101 message`."""
    text = Text()
    text.append(f.path, "bold")
    text.append(f":{f.line}:{f.column}: ")
    text.append(f.code.code, "bold red")
    return text.append(f" {f.message}")


def excerpt(f: Finding) -> Text:
    """A finding with its source, and what is known of it."""
    text = Text()
    text.append(f.code.code, "bold red").append(f" {f.code.name}", "bold").append(f": {f.message}")
    margin = " " * len(str(f.line))
    text.append(f"\n{margin}--> ", "bold blue").append(f"{f.path}:{f.line}:{f.column}")
    if f.source.strip():
        indent = len(f.source) - len(f.source.lstrip())
        start, end = f.column - 1, min(f.end_column - 1, len(f.source))
        text.append(f"\n{margin} |\n{f.line} | ", "bold blue").append(f.source)
        text.append(f"\n{margin} | ", "bold blue")
        text.append(" " * max(start, indent)).append("^" * max(end - start, 1), "bold red")
        text.append(f"\n{margin} |", "bold blue")
    for name, value in facts(f):
        text.append(f"\n{margin} = ", "bold blue").append(f"{name}: ", "bold").append(value)
    return text.append("\n")


def facts(f: Finding) -> list[tuple[str, str]]:
    """What a finding says apart from its message."""
    modules = [m for m in f.modules if m]
    more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    known = [
        ("help", f.help),
        ("in", ", ".join(modules[:3]) + more),
        ("shapes", ", ".join(f.shapes)),
        ("path", " -> ".join(shortened(f.route))),
    ]
    return [(name, value) for name, value in known if value]


def shortened(route: tuple[str, ...]) -> tuple[str, ...]:
    """A long route without its middle."""
    if len(route) <= LONGEST:
        return route
    return (*route[: LONGEST // 2], f"({len(route) - LONGEST} more)", *route[-LONGEST // 2 :])


def summary(results: Sequence[Result], findings: int) -> Text:
    """The last line."""
    failed = sum(r.status == "failed" for r in results)
    proven = sum(r.status == "proven" for r in results)
    parts: list[str] = []
    if findings:
        faulty = sum(bool(r.findings) for r in results)
        parts.append(
            f"Found {count(findings, 'fault')} in {faulty} of {count(len(results), 'model')}"
        )
    elif proven:
        parts.append(f"{count(proven, 'model')} proven")
    if failed:
        parts.append(f"{count(failed, 'model')} could not be linted")
    style = "red" if findings or failed else "green"
    return Text("; ".join(parts) + "." if parts else "", style)


def count(number: int, noun: str) -> str:
    """`1 model`, `2 models`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def statistics(results: Sequence[Result]) -> list[tuple[int, str, str]]:
    """How often each code was found, the most frequent first."""
    found = Counter((f.code.code, f.code.name) for f in sorted_findings(results))
    return [(n, *code) for code, n in sorted(found.items(), key=lambda i: (-i[1], i[0]))]


def as_string(results: Sequence[Result], full: bool) -> str:
    """The report without colours, for a file."""
    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    render(results, console, full=full)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
