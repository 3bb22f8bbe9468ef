"""Models of a target, one after the other, through the proof. Importing this imports torch."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text

from fxdp.diagnostics.printed import plain
from fxdp.lint.apart import apart
from fxdp.lint.models.building import Built
from fxdp.lint.models.targets import models
from fxdp.lint.models.wanted import Wanted
from fxdp.lint.paths import shortened, shortened_in
from fxdp.lint.proving import TimeUp, examined, limit
from fxdp.lint.replaced import replaced, state
from fxdp.lint.result import LeftOut, Result
from fxdp.lint.witness import WITNESS, Grounds


def lint(target: str, plan: Wanted, verbose: bool, quiet: bool) -> Iterator[Result | LeftOut]:
    """The results of all models that a target names, one after the other.

    Args:
        target: as the user names it.
        plan: how it is to be linted.
        verbose: whether warnings are shown.
        quiet: whether nothing is shown on a terminal meanwhile.
    """
    with ExitStack() as stack, progress(quiet) as show:
        found = models(target, plan, stack)
        while True:
            show(target)
            try:
                with apart(target.partition(":")[0], verbose), limit(plan.timeout):
                    built = next(found, None)
                    if built is None:
                        return
                    if isinstance(built, Built):
                        show(built.target)
                        target = built.target
                        built = examined(built, plan)
            except TimeUp:
                built = Result(target, shortened(target.partition(":")[0]), 1, "failed",
                               trouble=f"it took longer than {plan.timeout:g} s")  # fmt: skip
            yield from_here(built) if isinstance(built, Result) else built


def from_here(result: Result) -> Result:
    """A result whose paths are as the user would write them."""
    path, trouble = shortened(result.path), shortened_in(result.trouble)
    return replace(result, path=path, trouble=trouble)


@contextmanager
def progress(silent: bool) -> Iterator[Any]:
    """A line on a terminal that says which model is at work."""
    console = Console(stderr=True)
    if silent or not console.is_terminal:
        yield lambda name: None
        return
    with console.status("fxdp-lint") as status:
        yield lambda name: status.update(Text(f"proving {plain(name)}"))


@contextmanager
def watched(wanted: bool) -> Iterator[list[Grounds]]:
    """Find out what a verdict rests on; nothing is known before the end, or if a linted file
    changed this process for those behind it."""
    found: list[Grounds] = []
    if not wanted:
        yield found
        return
    WITNESS.begin()
    before = state()
    yield found
    grounds = WITNESS.grounds()
    WITNESS.tainted |= replaced(before)
    if grounds is not None and not WITNESS.tainted:
        found.append(grounds)
