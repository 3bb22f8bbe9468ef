"""Reports for programs: JSON, and the commands that GitHub shows next to a line."""

import json
from collections.abc import Sequence
from typing import Any

from fxdp.diagnostics.version import own_version, torch_version
from fxdp.lint.formats.text import sorted_findings
from fxdp.lint.result import Finding, Result


def as_json(results: Sequence[Result]) -> str:
    """One object: versions, and for each model what became of it."""
    versions = {"fxdp": own_version(), "torch": torch_version()}
    return json.dumps({**versions, "results": [result(r) for r in results]}, indent=2) + "\n"


def result(r: Result) -> dict[str, Any]:
    """What became of a model."""
    return {
        "target": r.target,
        "path": r.path,
        "line": r.line,
        "status": r.status,
        "seconds": round(r.seconds, 3),
        "trouble": r.trouble or None,
        "assumed": list(r.assumed),
        "findings": [finding(f) for f in r.findings],
    }


def finding(f: Finding) -> dict[str, Any]:
    """One fault."""
    return {
        "path": f.path,
        "line": f.line,
        "column": f.column,
        "end_column": f.end_column,
        "code": f.code.code,
        "name": f.code.name,
        "message": f.message,
        "help": f.help or None,
        "modules": [m for m in f.modules if m],
        "shapes": list(f.shapes),
        "route": list(f.route),
    }


def as_github(results: Sequence[Result]) -> str:
    """One workflow command a line."""
    lines = [annotation(f) for f in sorted_findings(results)]
    lines += [
        f"::error title=fxdp-lint,file={prop(r.path)},line={r.line}::{data(told(r))}"
        for r in results
        if r.status == "failed"
    ]
    return "".join(f"{line}\n" for line in lines)


def annotation(f: Finding) -> str:
    """A fault as a workflow command."""
    where = f"file={prop(f.path)},line={f.line},col={f.column},endLine={f.line}"
    text = data(f"{f.path}:{f.line}:{f.column}: {f.code.code} {f.message}")
    return f"::error title=fxdp-lint ({f.code.code}),{where},endColumn={f.end_column}::{text}"


def told(r: Result) -> str:
    """A failure in one line."""
    return f"{r.target}: {r.trouble}"


def data(text: str) -> str:
    """A message as GitHub wants it written."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def prop(text: str) -> str:
    """A property as GitHub wants it written."""
    return data(text).replace(":", "%3A").replace(",", "%2C")
