"""The command fxdp-lint: what it does, in order, and what its exit status says."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fxdp.diagnostics.printed import plain
from fxdp.lint.apart import apart, hush_at_exit
from fxdp.lint.config import Config, read
from fxdp.lint.formats import text
from fxdp.lint.formats.table import FORMATS, Format
from fxdp.lint.models.building import Built
from fxdp.lint.models.targets import LeftOut, models
from fxdp.lint.models.walking import expanded
from fxdp.lint.models.wanted import Wanted
from fxdp.lint.options import parser, wanted, words
from fxdp.lint.proving import TimeUp, examined, limit, shortened, shortened_in
from fxdp.lint.result import Result
from fxdp.lint.selection import explain, selected, wanted_codes
from fxdp.lint.trouble import Trouble

CLEAN, FOUND, FAILED, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except Trouble as error:
        complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED


def complain(line: str) -> None:
    """One line on stderr."""
    print(f"fxdp-lint: {plain(line)}", file=sys.stderr)


def run(options: argparse.Namespace) -> int:
    """Lint, report, and say how it went."""
    console = Console(highlight=False, soft_wrap=False)
    if options.explain:
        explain(options.explain, console)
        return CLEAN
    config = Config() if options.isolated else read(Path.cwd())
    style = options.output_format or config.run.get("output-format", "text")
    if style not in tuple(FORMATS):  # a file of settings may hold what has no hash
        raise Trouble(f"output-format {style!r} is not one of {', '.join(FORMATS)}")
    codes = wanted_codes(
        words(options.select) or config.run.get("select", []),
        words(options.ignore) or config.run.get("ignore", []),
    )
    targets: list[str] = options.targets or config.targets
    if not targets:
        raise Trouble("nothing to lint: name a file, PATH:OBJECT or a directory; see --help")
    files = [file for target in targets for file in expanded(target)]
    plans = [(file, wanted(options, config, file)) for file in files]
    results: list[Result] = []
    for target, plan in plans:
        for result in lint(target, plan, options):
            result = selected(from_here(result), codes)
            if result.status == "failed":
                failure(result, options.verbose)
            results.append(result)
    hush_at_exit()
    report(results, FORMATS[style], console, options)
    if options.certificate:
        write(Path(options.certificate), certificates(results))
    if any(r.status == "failed" for r in results):
        return FAILED
    return FOUND if any(r.findings for r in results) else CLEAN


def from_here(result: Result) -> Result:
    """A result whose paths are as the user would write them."""
    path, trouble = shortened(result.path), shortened_in(result.trouble)
    return replace(result, path=path, trouble=trouble)


def lint(target: str, plan: Wanted, options: argparse.Namespace) -> Iterator[Result]:
    """The results of all models that a target names, one after the other."""
    with ExitStack() as stack, progress(options.quiet) as show:
        found = models(target, plan, stack)
        while True:
            show(target)
            try:
                with apart(target.partition(":")[0], options.verbose), limit(plan.timeout):
                    built = next(found, None)
                    if built is None:
                        return
                    if isinstance(built, LeftOut):
                        if not options.quiet:
                            complain(f"{built.target}: left out, as {built.why}")
                        continue
                    if isinstance(built, Built):
                        show(built.target)
                        target = built.target
                        built = examined(built, plan)
            except TimeUp:
                yield Result(target, shortened(target.partition(":")[0]), 1, "failed",
                             trouble=f"it took longer than {plan.timeout:g} s")  # fmt: skip
                continue
            yield built


@contextmanager
def progress(silent: bool) -> Iterator[Any]:
    """A line on a terminal that says which model is at work."""
    console = Console(stderr=True)
    if silent or not console.is_terminal:
        yield lambda name: None
        return
    with console.status("fxdp-lint") as status:
        yield lambda name: status.update(Text(f"proving {plain(name)}"))


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
