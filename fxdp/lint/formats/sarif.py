"""SARIF 2.1.0, the format that code scanners upload."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fxdp.diagnostics.codes import CODES, Code
from fxdp.diagnostics.version import own_version
from fxdp.lint.formats.text import sorted_findings
from fxdp.lint.result import Finding, Result

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def render(results: Sequence[Result]) -> str:
    """One run, with a rule for each code and a notification for each model that failed."""
    failed = [r for r in results if r.status == "failed"]
    driver = {
        "name": "fxdp-lint",
        "version": own_version(),
        "semanticVersion": own_version(),
        "rules": [rule(c) for c in CODES.values()],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"ROOT": {"uri": f"{Path.cwd().as_uri()}/"}},
        "invocations": [
            {
                "executionSuccessful": not failed,
                "toolExecutionNotifications": [notification(r) for r in failed],
            }
        ],
        "results": [result(f) for f in sorted_findings(results)],
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2) + "\n"


def rule(c: Code) -> dict[str, Any]:
    """A code."""
    return {
        "id": c.code,
        "name": c.name,
        "shortDescription": {"text": c.what or c.name},
        "fullDescription": {"text": f"{c.why} Instead: {c.remedy}.".strip()},
        "help": {"text": f"Instead of\n    {c.bad}\nwrite\n    {c.good}"},
        "defaultConfiguration": {"level": "error"},
    }


def result(f: Finding) -> dict[str, Any]:
    """A fault."""
    told = f"{f.message}. {f.help}" if f.help else f.message
    return {
        "ruleId": f.code.code,
        "ruleIndex": [c.code for c in CODES.values()].index(f.code.code),
        "level": "error",
        "message": {"text": told},
        "locations": [location(f.path, f.line, f.column, f.end_column)],
        "properties": {"target": f.target, "route": list(f.route), "shapes": list(f.shapes)},
    }


def notification(r: Result) -> dict[str, Any]:
    """A model that could not be linted."""
    return {"level": "error", "message": {"text": f"{r.target}: {r.trouble}"}}


def location(path: str, line: int, column: int, end: int) -> dict[str, Any]:
    """A place; below the current directory where it can be."""
    inside = not Path(path).is_absolute()
    uri = {"uri": quote(Path(path).as_posix()), "uriBaseId": "ROOT"}
    region = {"startLine": line, "startColumn": column, "endColumn": end}
    return {
        "physicalLocation": {
            "artifactLocation": uri if inside else {"uri": Path(path).as_uri()},
            "region": region,
        }
    }
