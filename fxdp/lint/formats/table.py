"""The formats of a report, by the name that `--output-format` gives them.

A new one is a file of this folder and a row of `FORMATS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from fxdp.lint.formats import machine, sarif, text
from fxdp.lint.result import Result

Render = Callable[[Sequence[Result]], str]
Show = Callable[[Sequence[Result], Console, bool], None]


@dataclass(frozen=True)
class Format:
    """How results become a report.

    Attributes:
        render: the report as text, for a file or a program.
        show: writes it to a console, with colours where that has any, and findings alone if the
            last argument says so; None where a console gets the text.
    """

    render: Render
    show: Show | None = None

    @property
    def for_people(self) -> bool:
        """May a count of the findings stand in its place?"""
        return self.show is not None


def _html(results: Sequence[Result]) -> str:
    from fxdp.lint.formats.html import render  # large, and rarely wanted

    return render(results)


FORMATS: Mapping[str, Format] = {
    "text": Format(partial(text.as_string, full=False), partial(text.render, full=False)),
    "full": Format(partial(text.as_string, full=True), partial(text.render, full=True)),
    "json": Format(machine.as_json),
    "sarif": Format(sarif.render),
    "github": Format(machine.as_github),
    "html": Format(_html),
}
