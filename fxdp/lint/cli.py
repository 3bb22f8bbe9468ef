"""The command fxdp-lint: what it does, in order, and what its exit status says."""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from fxdp.diagnostics.printed import plain
from fxdp.lint.apart import hush_at_exit
from fxdp.lint.cache import Cache
from fxdp.lint.config import Config, read
from fxdp.lint.formats import text
from fxdp.lint.formats.table import FORMATS, Format
from fxdp.lint.models.walking import absence, expanded, split
from fxdp.lint.models.wanted import Wanted
from fxdp.lint.options import parser, per_file, wanted, words
from fxdp.lint.paths import shortened
from fxdp.lint.result import LeftOut, Result
from fxdp.lint.selection import Selection, explain
from fxdp.lint.trouble import Trouble

if TYPE_CHECKING:
    from fxdp.lint.fixing import Edit

CLEAN, FOUND, FAILED, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    return guarded(lambda: watched(options) if options.watch else run(options))


def guarded(work: Callable[[], int]) -> int:
    """The exit status of a run, whatever it meets."""
    try:
        return work()
    except Trouble as error:
        complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED


def watched(options: argparse.Namespace) -> int:
    """Run whenever a file changes; what the command line gets wrong is said once."""
    plan = planned(options)
    from fxdp.lint import linting, watching  # imports torch once, for all runs

    assert linting
    watching.watch(lambda: guarded(lambda: run(options)), [target for target, _ in plan.targets])
    return CLEAN


def complain(line: str) -> None:
    """One line on stderr."""
    print(f"fxdp-lint: {plain(line)}", file=sys.stderr)


def run(options: argparse.Namespace) -> int:
    """Lint, report, and say how it went."""
    console = Console(highlight=False, soft_wrap=False)
    if options.explain:
        explain(options.explain, console)
        return CLEAN
    if options.check:
        from fxdp.lint.checking import check  # imports torch

        return (
            CLEAN if check(options, Config() if options.isolated else read(Path.cwd())) else FOUND
        )
    since = time.time()
    plan = planned(options)
    if options.fix or options.diff:
        check_libcst()
    results = list(linted(plan, options))
    if options.diff or options.fix:
        found = edits(results)
        if options.diff:
            return shown(found, results, console)
        if any([not written(edit, plan, since) for edit in found]):
            return FAILED
        if found and plan.unsafe:
            results = list(linted(plan, options))
    hush_at_exit()
    report(results, FORMATS[plan.style], console, options)
    if options.certificate:
        write(Path(options.certificate), certificates(results))
    return status(results, options.exit_zero)


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        style: the name of the format.
        unsafe: whether fixes are written that change what a model computes.
        selection: which findings are reported.
        cache: of verdicts; None for none.
        targets: what is linted, and how each of them.
    """

    style: str
    unsafe: bool
    selection: Selection
    cache: Cache | None
    targets: tuple[tuple[str, Wanted], ...]


def planned(options: argparse.Namespace) -> Plan:
    """What the command line and pyproject.toml ask for; nothing is imported for it.

    Raises:
        Trouble: something that means nothing, or is not there.
    """
    config = Config() if options.isolated else read(Path.cwd())
    style = options.output_format or config.run.get("output-format") or usual(options)
    if style not in tuple(FORMATS):  # a file of settings may hold what has no hash
        raise Trouble(f"output-format {style!r} is not one of {', '.join(FORMATS)}")
    selection = Selection.of(
        words(options.select) or config.run.get("select", []),
        words(options.ignore) or config.run.get("ignore", []),
        per_file(options.per_file_ignores) or config.per_file_ignores,
    )
    targets: list[str] = options.targets or config.targets
    if not targets:
        raise Trouble("nothing to lint: name a file, PATH:OBJECT or a directory; see --help")
    exclude = words(options.exclude) or config.exclude
    files = [file for target in targets for file in expanded(target, exclude)]
    if not files:
        complain("nothing to lint: every file is excluded")
    unsafe = options.unsafe_fixes or config.run.get("unsafe-fixes", False) is True
    plans = tuple((file, wanted(options, config, file)) for file in files)
    folder = Path(options.cache_dir or config.cache_dir)
    cache = None if options.no_cache else Cache.of(folder)
    return Plan(style, unsafe, selection, cache, plans)


def usual(options: argparse.Namespace) -> str:
    """The format where none is named: `full` on a terminal, a line for a finding elsewhere."""
    return "full" if sys.stdout.isatty() and not options.output_file else "text"


def linted(plan: Plan, options: argparse.Namespace) -> Iterator[Result]:
    """The results of all targets; what failed, and what was left out, is said at once."""
    for target, how in plan.targets:
        for result in results_of(target, how, plan, options):
            if isinstance(result, LeftOut):
                if not options.quiet:
                    complain(f"{result.target}: left out, as {result.why}")
                continue
            if result.status == "failed":
                failure(result, options.verbose)
            yield plan.selection.of_result(result)


def results_of(
    target: str, how: Wanted, plan: Plan, options: argparse.Namespace
) -> Iterator[Result | LeftOut]:
    """The results of one target, those of an earlier run where nothing has changed."""
    if why := absence(target):
        yield Result(target, shortened(split(target)[0]), 1, "failed", trouble=why)
        return
    if plan.cache is not None and not needs_proof(plan, options):
        kept = plan.cache.get(target, how)
        if kept is not None:
            yield from kept
            return
    from fxdp.lint.linting import lint, watched  # imports torch, which --help does without

    found: list[Result | LeftOut] = []
    with watched(plan.cache is not None) as grounds:
        for result in lint(target, how, options.verbose, options.quiet):
            found.append(result)
            yield result
    if plan.cache is not None and grounds:
        plan.cache.put(target, how, found, grounds[0])


def needs_proof(plan: Plan, options: argparse.Namespace) -> bool:
    """Is something wanted that the cache does not hold?"""
    more = options.certificate or options.verbose or options.fix or options.diff
    return bool(more) or plan.style == "html"


def check_libcst() -> None:
    """Raises Trouble where libcst is not installed, which fixes need."""
    if importlib.util.find_spec("libcst") is None:
        raise Trouble("--fix and --diff need libcst: pip install 'fxdp[fix]'")


def edits(results: list[Result]) -> "list[Edit]":
    """What could be fixed."""
    from fxdp.lint import fixing  # imports torch, and libcst, which is optional

    return fixing.edits(results)


def shown(found: "list[Edit]", results: list[Result], console: Console) -> int:
    """The fixes as a patch; the exit status says whether there are any, as in ruff."""
    hush_at_exit()
    for edit in found:
        for line in edit.diff().splitlines():
            style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
            console.print(Text(line, style), soft_wrap=True)
    number = sum(edit.changes for edit in found)
    told = text.count(number, "norm") + f" in {text.count(len(found), 'file')}"
    complain(f"would fix {told}; --fix --unsafe-fixes writes that" if found else "nothing to fix")
    return FAILED if any(r.status == "failed" for r in results) else FOUND if found else CLEAN


def written(edit: "Edit", plan: Plan, since: float) -> bool:
    """Write a fix to its file, if that is wanted, and say so; False where it cannot be written."""
    norms = f"{text.count(edit.changes, 'norm')} in {shortened(str(edit.file))}"
    if not plan.unsafe:
        complain(f"not fixed: {norms}; --unsafe-fixes lets a fix change what a model computes")
        return True
    try:
        edit.write(since)
    except Trouble as error:
        complain(str(error))
        return False
    complain(f"fixed {norms}")
    return True


def status(results: list[Result], exit_zero: bool) -> int:
    """The exit status of a run; findings alone may be forgiven."""
    if any(r.status == "failed" for r in results):
        return FAILED
    return FOUND if any(r.findings for r in results) and not exit_zero else CLEAN


def failure(result: Result, verbose: bool) -> None:
    """A model that could not be linted, on one line; with the traceback if wanted."""
    complain(f"{result.target}: {result.trouble}")
    if verbose and result.details:
        for line in result.details.splitlines():
            print(f"| {line}", file=sys.stderr)  # no line of theirs begins one of the log's


def report(
    results: list[Result], style: Format, console: Console, options: argparse.Namespace
) -> None:
    """Write the report, to a file or to stdout."""
    if options.statistics and style.for_people:
        for number, code, name in text.statistics(results):
            console.print(Text(f"{number:>5}  ").append(code, "bold red").append(f"  {name}"))
        return
    if options.output_file:
        write(Path(options.output_file), style.render(results))
    elif style.show is not None:
        style.show(results, console, options.quiet)
    else:
        sys.stdout.write(style.render(results))


def certificates(results: list[Result]) -> str:
    """The certificates of proven models: one, or a list."""
    found = [json.loads(r.certificate.to_json()) for r in results if r.certificate is not None]
    return json.dumps(found[0] if len(results) == len(found) == 1 else found, indent=2) + "\n"


def write(file: Path, content: str) -> None:
    """Write a file.

    Raises:
        Trouble: it cannot be written.
    """
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise Trouble(f"cannot write {file}: {error.strerror}") from error
