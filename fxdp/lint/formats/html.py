"""`--output-format html`: what a lint run found, as one page that needs nothing else.

The page holds its data as JSON in a script element that is not run, and draws it with a little
plain JavaScript. Names and source lines come from other people's files: they are escaped in the
JSON, and the page only ever sets them as text. A content security policy lets nothing but the
page's own script and style run.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from torch.fx import GraphModule

from fxdp.diagnostics.version import own_version, torch_version
from fxdp.graph.study import Joint
from fxdp.lint.formats.html_graph import Names, drawing
from fxdp.lint.formats.html_parts import (
    certificate,
    file_of,
    finding,
    modules,
    printed,
    shown_path,
    source,
)
from fxdp.lint.result import Result

SCRIPTS = ("base.js", "graph.js", "modules.js", "source.js", "page.js")
SOURCE_LIMIT = 600_000  # characters of source files in a page, apart from those with faults
NODE_LIMIT = 40_000  # of all models of a page together; those behind get no picture
ESCAPES = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render(results: Sequence[Result]) -> str:
    """A self-contained page that shows the results."""
    style = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, SCRIPTS)) + "\n})();\n"
    parts = {
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}",
        "title": html.escape(f"fxdp-lint: {', '.join(r.target for r in results)}"),
        "style": style,
        "script": script,
        "data": embedded(printed(data(results))),
        "text": html.escape("\n".join(map(_as_text, results))),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _asset("page.html"))


def data(results: Sequence[Result]) -> dict[str, Any]:
    """What the page is drawn from."""
    files = Names()
    shown = {files(file_of(f)): f.path for r in results for f in r.findings}
    models: list[dict[str, Any]] = []
    nodes = 0
    for r in results:
        joint = r.study.found(Joint) if r.study is not None else None
        gm = joint.graph if joint is not None else None
        nodes += len(gm.graph.nodes) if gm is not None else 0
        models.append(model(r, gm if nodes <= NODE_LIMIT else None, files))
    versions = {"fxdp": own_version(), "torch": torch_version()}
    return {"models": models, "sources": sources(files.texts, shown), "versions": versions}


def model(r: Result, gm: GraphModule | None, files: Names) -> dict[str, Any]:
    """What the page tells of one model."""
    graph = drawing(r, r.study, gm, files) if r.study is not None and gm is not None else None
    used = [graph["texts"][i] for i in dict.fromkeys(graph["module"])] if graph else []
    used += [m for f in r.findings for m in f.modules]
    return {
        "target": r.target,
        "path": r.path,
        "line": r.line,
        "status": r.status,
        "trouble": r.trouble,
        "details": r.details,
        "seconds": round(r.seconds, 2),
        "findings": [finding(f) | {"file": files(file_of(f))} for f in r.findings],
        "modules": modules(r.model, used),
        "graph": graph,
        "notes": list(r.study.notes) if r.study is not None else [],
        "certificate": certificate(r.certificate),
    }


def sources(files: Sequence[str], faulty: dict[int, str]) -> list[dict[str, Any]]:
    """The source files, those with faults in any case and others while there is room."""
    found: list[dict[str, Any]] = []
    room = SOURCE_LIMIT
    for i, file in enumerate(files):
        found.append(source(file, faulty.get(i) or shown_path(file), i in faulty, room))
        room -= 0 if i in faulty else sum(map(len, found[-1]["lines"]))
    return found


def embedded(value: Any) -> str:
    """JSON that no HTML parser finds a tag in, wherever it stands in a page."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return re.sub("[<>&\u2028\u2029]", lambda m: ESCAPES[m[0]], text)


def _asset(name: str) -> str:
    return (resources.files("fxdp.lint.formats") / "page" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _as_text(r: Result) -> str:
    """A result for readers without scripts."""
    lines = [f"{f.path}:{f.line}:{f.column}: {f.code.code} {f.message}" for f in r.findings]
    return "\n".join([f"{r.target}: {r.status} {r.trouble}".rstrip(), *lines])
